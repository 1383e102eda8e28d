"""The components' folder is beside the package, as it is for the command line."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
