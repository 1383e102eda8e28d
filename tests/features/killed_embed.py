"""Embeds a day in a process that kills itself: `python killed_embed.py CONFIG DAY WRITES`."""

import sys
from datetime import date
from functools import partial
from pathlib import Path

from deadly_storage import DeadlyStorage
from storyrec.config import load_config
from storyrec.features import embed

if __name__ == "__main__":
    settings, day, writes = sys.argv[1:]
    embed.PART_SIZE = 4
    embed.FolderStorage = partial(DeadlyStorage, num_writes=int(writes))  # type: ignore[assignment,misc]
    embed.embed_covers(load_config(Path(settings)), day=date.fromisoformat(day))
