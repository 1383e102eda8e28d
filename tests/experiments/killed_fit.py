"""Fits a method in a process of its own that kills itself: `python killed_fit.py METHOD ROOT DATASET WRITES`.

ROOT holds config.json; the process dies by SIGKILL right after so many writes of its checkpoint, which
is saved after every step.
"""

import sys
from functools import partial
from pathlib import Path

from deadly_storage import DeadlyStorage
from storyrec import loop
from storyrec.config import config_from_json
from storyrec.experiments import fit

if __name__ == "__main__":
    method, root, dataset, writes = sys.argv[1:]
    loop.CHECKPOINT_SECONDS = 0.0
    fit.FolderStorage = partial(DeadlyStorage, num_writes=int(writes))  # type: ignore[assignment,misc]
    config = config_from_json((Path(root) / "config.json").read_text())
    fit.fit(method, root=Path(root), config=config, dataset=Path(dataset), seed=0)
