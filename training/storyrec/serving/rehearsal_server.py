"""The model server of a rehearsal: `storyrec serve`, with clicks from a file instead of the feature store.

    python -m storyrec.serving.rehearsal_server SETTINGS CLICKS

Ends when its standard input does, so it does not outlive the rehearsal that started it.
"""

import json
import os
import sys
import threading
from functools import partial
from pathlib import Path

from storyrec.config import load_config
from storyrec.errors import StoryrecError
from storyrec.serving.ranking import NO_CLICKS, Clicks
from storyrec.serving.server import serve_with
from storyrec.serving.store import Sequences


def clicks_of_file(path: Path) -> Sequences:
    """Look users up in a file: {user id: [story ids, their times, product ids, their times]}."""
    held = json.loads(path.read_bytes())

    def sequences(user_id: int) -> tuple[Clicks, Clicks]:
        found = held.get(str(user_id))
        return (Clicks(found[0], found[1]), Clicks(found[2], found[3])) if found else (NO_CLICKS, NO_CLICKS)

    return sequences


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        serve_with(load_config(Path(sys.argv[1])), sequences=partial(clicks_of_file, Path(sys.argv[2])))
    except StoryrecError as error:
        sys.exit(str(error))
