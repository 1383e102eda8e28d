"""The manifest of a bundle: the SHA-256 of every file, written last.

A folder without a manifest, or with a file that differs from it, is no bundle.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path, PurePosixPath

from storyrec.errors import ModelError
from storyrec.storage import write_file

MANIFEST = "manifest.json"
FORMAT = 1
VERSION = re.compile(r"[0-9a-f]{16}")
RECORDS = ("training.json", "evaluation.json", "verdict.json", "model_card.md")
"""Files that tell about a model and are no part of it: they do not change its version."""


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says.

    Attributes:
        version: 16 hex digits, from the content of the model files and the day.
        day: the day whose run trained the model.
        files: SHA-256 by file name, relative to the bundle, forward slashes.
    """

    version: str
    day: date
    files: Mapping[str, str]

    @property
    def model_files(self) -> dict[str, str]:
        """The files that the version is made from."""
        return {name: digest for name, digest in self.files.items() if name not in RECORDS}

    def with_records(self, records: Mapping[str, bytes]) -> "Manifest":
        """The manifest of the same model with more files of RECORDS, by name."""
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in records.items()}
        if not sums.keys() <= set(RECORDS):
            raise ValueError(f"{sorted(sums)} are not all records: {RECORDS}")
        return replace(self, files={**self.files, **sums})

    def to_json(self) -> bytes:
        """The bytes of manifest.json."""
        files = dict(sorted(self.files.items()))
        content = {"format": FORMAT, "version": self.version, "day": self.day.isoformat(), "files": files}
        return json.dumps(content, indent=2).encode()

    @classmethod
    def from_json(cls, content: bytes, *, where: str) -> "Manifest":
        """Read manifest.json.

        Raises:
            ModelError: it is damaged, of another format, or its version does not follow from its sums.
        """
        try:
            read = json.loads(content)
            if read["format"] != FORMAT:
                raise ValueError(f"format {read['format']}, this program reads format {FORMAT}")
            manifest = cls(read["version"], date.fromisoformat(read["day"]), dict(read["files"]))
            for name in manifest.files:
                if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                    raise ValueError(f"'{name}' lies outside of the bundle")
            if manifest.version != _version(manifest.model_files, manifest.day):
                raise ValueError(f"version {manifest.version} does not follow from the sums")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"the bundle's manifest cannot be used: {error}",
                expected=f"{MANIFEST} of format {FORMAT}, as pack_bundle writes it",
                where=where,
                remedy="pack the bundle again, or roll back to an earlier one",
            ) from error
        return manifest


def seal_folder(folder: Path, *, day: date) -> Manifest:
    """Write manifest.json over all files of a folder."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    files = {path.relative_to(folder).as_posix(): _sum(path) for path in paths}
    manifest = Manifest("", day, files)
    manifest = Manifest(_version(manifest.model_files, day), day, files)
    write_file(folder / MANIFEST, manifest.to_json())
    return manifest


def verify_folder(folder: Path, *, where: str = "") -> Manifest:
    """Read a bundle's manifest and compare every file with it.

    Args:
        folder: the bundle.
        where: what to call the place in errors; the folder itself if empty.

    Raises:
        ModelError: a file is missing, changed or not in the manifest.
    """
    where = where or str(folder)
    try:
        content = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise ModelError(
            f"there is no bundle: {MANIFEST} cannot be read ({error.strerror})",
            where=where,
            remedy="name a folder that pack_bundle wrote",
        ) from error
    manifest = Manifest.from_json(content, where=where)
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    there = {path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)} - {MANIFEST}
    problems = [f"{name} is missing" for name in sorted(set(manifest.files) - there)]
    problems += [f"{name} is not in the manifest" for name in sorted(there - set(manifest.files))]
    problems += [
        f"{name} was changed"
        for name in sorted(there & set(manifest.files))
        if _sum(folder / name) != manifest.files[name]
    ]
    if problems:
        raise ModelError(
            f"bundle {manifest.version} is damaged: {'; '.join(problems)}",
            expected=f"the sums of {MANIFEST}",
            where=where,
            remedy="pack or fetch the bundle again, or roll back to an earlier one",
        )
    return manifest


def _version(model_files: Mapping[str, str], day: date) -> str:
    lines = [day.isoformat(), *(f"{digest}  {name}" for name, digest in sorted(model_files.items()))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
