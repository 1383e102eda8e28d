"""Work for processes that start fast: nothing heavy is imported here."""

import os
import signal
from pathlib import Path

from storyrec.errors import DataError


def leave(path: Path) -> None:
    """Leave a file that names the process; a second time is an error."""
    with path.open("x") as file:
        file.write(str(os.getpid()))


def fail(path: Path) -> None:
    """Leave nothing."""
    raise DataError("nothing to learn from", expected="clicks", where=str(path), remedy="log clicks")


def be_killed(path: Path) -> None:
    """Be gone, as when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
