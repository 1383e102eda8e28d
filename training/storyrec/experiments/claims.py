"""What a folder's results rest on, written beside them, so that results of two kinds never meet in one folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storyrec.errors import DataError
from storyrec.storage import write_file


def claim(path: Path, facts: Mapping[str, Any]) -> list[str]:
    """Write the facts down where nothing stands yet; else say how they differ from what stands there.

    Returns:
        `name was this, now that` for each difference.

    Raises:
        DataError: what stands there cannot be read.
    """
    if path.exists():
        return differences(read_json(path), facts)
    write_file(path, json.dumps(facts, indent=1).encode())
    return []


def differences(found: Mapping[str, Any], expected: Mapping[str, Any], *, prefix: str = "") -> list[str]:
    """What is not the same, in nested settings too: `name was this, now that`."""
    lines: list[str] = []
    for name in sorted(found.keys() | expected.keys()):
        theirs, ours = found.get(name), expected.get(name)
        if isinstance(theirs, dict) and isinstance(ours, dict):
            lines += differences(theirs, ours, prefix=f"{prefix}{name}.")
        elif theirs != ours:
            lines.append(f"{prefix}{name} was {theirs}, now {ours}")
    return lines


def read_json(path: Path) -> dict[str, Any]:
    """What an experiment wrote.

    Raises:
        DataError: the file is missing or holds no JSON object.
    """
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
        return content
    except (OSError, ValueError) as error:
        raise unreadable(error, where=path) from error


def unreadable(error: Exception, *, where: Path) -> DataError:
    """The error to raise for a file that should hold what an experiment wrote."""
    reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
    return DataError(
        f"the file cannot be read: {reason}",
        expected="what an experiment wrote",
        where=str(where),
        remedy="remove it and run the experiment again",
    )
