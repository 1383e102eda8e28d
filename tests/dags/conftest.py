"""DAG files as Airflow reads them: their folder on the path, Airflow's own folder out of the way."""

import os
import sys
import tempfile
from pathlib import Path

DAGS = Path(__file__).parents[2] / "dags"

# before anything imports Airflow, which writes there on import
os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="storyrec-airflow-"))
sys.path.insert(0, str(DAGS))
