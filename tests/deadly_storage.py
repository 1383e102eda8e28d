"""A folder that ends the process, for tests of what a kill leaves."""

import os
import signal
from pathlib import Path

from storyrec.storage import FolderStorage


class DeadlyStorage(FolderStorage):
    """A folder after whose n-th write the process is gone."""

    def __init__(self, folder: Path, *, num_writes: int) -> None:
        super().__init__(folder)
        self.num_left = num_writes

    def write(self, key: str, content: bytes) -> None:
        super().write(key, content)
        self.num_left -= 1
        if self.num_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
