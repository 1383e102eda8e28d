"""Care of a registry: what it holds, whether it is whole, what may go.

The folder or prefix is only listed; of a bundle, manifest.json and verdict.json are read, or, to verify it, every file.
"""

import contextlib
import json
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Literal

from storyrec.errors import ModelError, StorageError
from storyrec.manifest import MANIFEST, Manifest
from storyrec.pointer import Pointer
from storyrec.registry import BUNDLES, UPLOADS, VERDICT, read_champion, read_manifest
from storyrec.storage import Storage

NUM_KEPT = 7
"""Champions before this one that are kept: their days can be run again, or rolled back to."""
GRACE = timedelta(hours=24)
"""How long what was pushed stays untouched: an upload, or a deployment that has not switched the pointer yet."""

Role = Literal["champion", "canary", "previous", "earlier champion", "withdrawn", ""]


@dataclass(frozen=True)
class Held:
    """A bundle in the registry.

    Attributes:
        version: as its folder is named.
        day: whose run trained it; None: the upload never finished, or the manifest is damaged.
        role: what the pointer says of it.
        blessed: what its verdict.json says; None: it has none.
        num_files, num_bytes: of it in the registry.
    """

    version: str
    day: date | None
    role: Role
    blessed: bool | None
    num_files: int
    num_bytes: int


@dataclass(frozen=True)
class Garbage:
    """A bundle that nobody needs, and why."""

    version: str
    num_bytes: int
    why: str


def list_bundles(storage: Storage) -> tuple[Held, ...]:
    """Every bundle that the registry holds, by day.

    Raises:
        ModelError: the pointer is damaged.
    """
    pointer = read_champion(storage)
    sizes = _sizes(storage)
    held = []
    for version, files in sizes.items():
        manifest = None
        with contextlib.suppress(ModelError):
            manifest = read_manifest(storage, version)
        held.append(
            Held(
                version=version,
                day=manifest.day if manifest else None,
                role=_role(pointer, version),
                blessed=is_blessed(storage, version),
                num_files=len(files),
                num_bytes=sum(files.values()),
            )
        )
    return tuple(sorted(held, key=lambda bundle: (bundle.day or date.max, bundle.version)))


def is_blessed(storage: Storage, version: str) -> bool | None:
    """Whether the bundle's own verdict blesses exactly it; None where it has none."""
    found = storage.read_versioned(f"{BUNDLES}/{version}/{VERDICT}")
    if found is None:
        return None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        verdict = json.loads(found[0])
        return verdict["blessed"] is True and verdict["challenger"] == version
    return False


def verify_bundle(storage: Storage, version: str) -> Manifest:
    """Compare every file of a bundle in the registry with the sums of its manifest.

    Raises:
        ModelError: it is not there whole, or a file is missing, changed or not in the manifest.
    """
    manifest = read_manifest(storage, version)
    prefix = f"{BUNDLES}/{version}/"
    there = {key.removeprefix(prefix) for key in storage.list(prefix)} - {MANIFEST}
    problems = [f"{name} is missing" for name in sorted(manifest.files.keys() - there)]
    problems += [f"{name} is not in the manifest" for name in sorted(there - manifest.files.keys())]
    for name in sorted(there & manifest.files.keys()):
        try:
            changed = storage.sha256(prefix + name) != manifest.files[name]
        except StorageError as error:
            problems.append(f"{name} cannot be read: {error.found}")
            continue
        if changed:
            problems.append(f"{name} was changed")
    if problems:
        raise ModelError(
            f"bundle {version} is damaged: {'; '.join(problems)}",
            expected=f"the sums of {MANIFEST}",
            where=f"{storage.url}/{BUNDLES}/{version}",
            remedy="roll back if it is the champion; else run the deployment of its day again",
        )
    return manifest


def find_damage(storage: Storage) -> dict[str, str]:
    """What is wrong with each bundle of the registry, and with those that the pointer names; empty: nothing.

    A bundle without a manifest that was pushed within the last day may still be on its way, and is left out.
    """
    pointer = read_champion(storage)
    named = _needed(pointer) if pointer else set()
    fresh = _fresh(storage, at=datetime.now(UTC))
    problems = {}
    for version in sorted({*_sizes(storage), *named}):
        if version not in named and version in fresh and not storage.exists(f"{BUNDLES}/{version}/{MANIFEST}"):
            continue
        try:
            verify_bundle(storage, version)
        except ModelError as error:
            problems[version] = error.found
    return problems


def find_garbage(storage: Storage, *, at: datetime) -> tuple[Garbage, ...]:
    """Bundles that neither the pointer nor a recent champion nor a recent push needs.

    Kept are the champion, the canary, the last `NUM_KEPT` champions before it, and what was pushed within `GRACE`.

    Args:
        storage: the registry.
        at: now, aware.

    Raises:
        ModelError: the pointer is damaged: then nothing is garbage.
    """
    pointer = read_champion(storage)
    kept = (_needed(pointer) if pointer else set()) | _fresh(storage, at=at)
    found = []
    for version, files in _sizes(storage).items():
        if version not in kept:
            why = "no pointer names it" if MANIFEST in files else "its upload never finished"
            found.append(Garbage(version, sum(files.values()), why))
    return tuple(found)


def remove_garbage(storage: Storage, garbage: tuple[Garbage, ...], *, at: datetime) -> tuple[Garbage, ...]:
    """Remove bundles, the manifest first, so that what is half gone is no bundle any more.

    Returns:
        Those that went; one that was pushed or pointed to meanwhile stays.
    """
    gone = []
    for bundle in garbage:
        if bundle.version not in {still.version for still in find_garbage(storage, at=at)}:
            continue
        prefix = f"{BUNDLES}/{bundle.version}/"
        storage.delete(prefix + MANIFEST)
        for key in storage.list(prefix):
            storage.delete(key)
        storage.delete(f"{UPLOADS}/{bundle.version}")
        gone.append(bundle)
    return tuple(gone)


def _sizes(storage: Storage) -> dict[str, dict[str, int]]:
    """Bytes of every file by version."""
    sizes: dict[str, dict[str, int]] = {}
    for key, stamp in storage.stamps(f"{BUNDLES}/").items():
        _, version, name = key.split("/", 2)
        sizes.setdefault(version, {})[name] = stamp.num_bytes
    return sizes


def _needed(pointer: Pointer) -> set[str]:
    kept = [pointer.champion, *pointer.history[-NUM_KEPT:]] + ([pointer.canary] if pointer.canary else [])
    return {champion.version for champion in kept}


def _fresh(storage: Storage, *, at: datetime) -> set[str]:
    """Versions that somebody pushed lately; one whose time cannot be read counts as such."""
    fresh = set()
    for key in storage.list(f"{UPLOADS}/"):
        try:
            is_old = at - datetime.fromisoformat(storage.read(key).decode()) > GRACE
        except (ValueError, TypeError):
            is_old = False
        if not is_old:
            fresh.add(key.removeprefix(f"{UPLOADS}/"))
    return fresh


def _role(pointer: Pointer | None, version: str) -> Role:
    if pointer is None:
        return ""
    if version == pointer.champion.version:
        return "champion"
    if pointer.canary is not None and version == pointer.canary.version:
        return "canary"
    if pointer.previous is not None and version == pointer.previous.version:
        return "previous"
    if any(version == champion.version for champion in pointer.history):
        return "earlier champion"
    return "withdrawn" if any(version == champion.version for champion in pointer.withdrawn) else ""
