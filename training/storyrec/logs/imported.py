"""What an import leaves to say what it is: its marker, and the digests of the files it read."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storyrec.errors import DataError

MARKER = "_import.json"
IDS = "_ids"


def digest_file(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"the file cannot be read: {error.strerror}", where=str(path), remedy="correct its permissions"
        ) from error


def earlier_import(out: Path, settings: Mapping[str, object]) -> dict[str, Any] | None:
    """The summary of this very import if `out` holds it, None if `out` is free.

    Raises:
        DataError: `out` holds anything else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        summary: dict[str, Any] = json.loads((out / MARKER).read_text(encoding="utf-8"))
        if summary["settings"] == settings:
            return summary
        found = "the folder holds an import of other files or settings"
    except (OSError, ValueError, KeyError, TypeError):
        found = "the place for the imported logs is taken by something else"
    raise DataError(
        found,
        expected="a new or empty folder, or one with this very import",
        where=str(out),
        remedy="name another folder, or remove this one if you do not need it",
    )
