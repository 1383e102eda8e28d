"""The model registry: immutable bundles, and one pointer that says which of them is the champion.

Layout, a folder or an S3 prefix:

    bundles/<version>/...    a bundle; its manifest.json is written last, without it there is no bundle
    uploads/<version>        when somebody last pushed it: what is fresh is not removed
    champion.json            the pointer; every change of it is one conditional write

The pointer carries the champions before it, so that a day can be run again against the champion it
was first judged against, and those that a person rolled back, so that no rerun deploys them again.
"""

import getpass
import os
import socket
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

from storyrec.config import Config, Locations
from storyrec.errors import Conflict, ModelError
from storyrec.manifest import MANIFEST, Manifest, verify_folder
from storyrec.pointer import Champion, Change, Pointer
from storyrec.storage import Storage, open_storage, write_file, write_folder

POINTER = "champion.json"
BUNDLES = "bundles"
UPLOADS = "uploads"
VERDICT = "verdict.json"


def read_champion(storage: Storage) -> Pointer | None:
    """What is deployed; None before the first deployment.

    Raises:
        ModelError: champion.json is damaged.
    """
    return read_pointer(storage)[0]


def champion_before(storage: Storage, day: date) -> Champion | None:
    """The champion that the run of `day` starts from and is judged against.

    The most recently deployed one of an earlier day: running a day again after its own deployment
    finds the same one.
    """
    pointer = read_champion(storage)
    if pointer is None:
        return None
    earlier = [champion for champion in (*pointer.history, pointer.champion) if champion.day < day]
    return earlier[-1] if earlier else None


def push_bundle(storage: Storage, folder: Path, *, records: Mapping[str, bytes] | None = None) -> str:
    """Put a bundle into the registry, manifest last; nothing is written where it is already there.

    Args:
        storage: the registry.
        folder: a complete bundle.
        records: files that tell about the model and are pushed with it, by name.

    Returns:
        The bundle's version.

    Raises:
        ModelError: the folder's sums do not match its manifest, or other model files have this version.
    """
    manifest = verify_folder(folder).with_records(records or {})
    prefix = f"{BUNDLES}/{manifest.version}"
    storage.write(f"{UPLOADS}/{manifest.version}", now().encode())  # from here on nobody removes what is pushed
    there = storage.read_versioned(f"{prefix}/{MANIFEST}")
    if there is None:
        for name in sorted(manifest.files):
            content = records[name] if records and name in records else (folder / name).read_bytes()
            storage.write(f"{prefix}/{name}", content)
        storage.write(f"{prefix}/{MANIFEST}", manifest.to_json())
    elif Manifest.from_json(there[0], where=f"{storage.url}/{prefix}").model_files != manifest.model_files:
        raise ModelError(
            f"version {manifest.version} is in the registry with other model files",
            where=f"{storage.url}/{prefix}",
            remedy="if it is not deployed, remove it from the registry and run the same command again",
        )
    return manifest.version


def read_manifest(storage: Storage, version: str) -> Manifest:
    """The manifest of a bundle in the registry.

    Raises:
        ModelError: there is no such bundle, its upload never finished, or the manifest is damaged.
    """
    prefix = f"{BUNDLES}/{version}"
    where = f"{storage.url}/{prefix}"
    found = storage.read_versioned(f"{prefix}/{MANIFEST}")
    if found is None:
        raise ModelError(
            f"bundle {version} is not in the registry or its upload never finished: it has no {MANIFEST}",
            where=where,
            remedy="run the deployment of its day again, or name a bundle of `storyrec registry list`",
        )
    manifest = Manifest.from_json(found[0], where=where)
    if manifest.version != version:
        raise ModelError(
            f"the manifest names version {manifest.version}", expected=version, where=where, remedy="deploy it again"
        )
    return manifest


def fetch_bundle(storage: Storage, version: str, folder: Path) -> None:
    """Copy a bundle out of the registry into a folder that appears whole, its sums verified.

    Raises:
        ModelError: there is no such bundle, its upload never finished, or a file was changed.
    """
    manifest = read_manifest(storage, version)
    prefix = f"{BUNDLES}/{version}"
    where = f"{storage.url}/{prefix}"
    with write_folder(folder) as copy:
        for name in manifest.files:
            content = storage.read_versioned(f"{prefix}/{name}")
            if content is None:
                raise ModelError(f"the bundle has no {name}", where=where, remedy="roll back or deploy it again")
            write_file(copy / name, content[0])
        write_file(copy / MANIFEST, manifest.to_json())
        verify_folder(copy, where=where)


def open_registry(locations: Locations) -> Storage:
    """The registry that the settings name."""
    return open_storage(locations.registry, s3_endpoint=locations.s3_endpoint)


def fetch_champion(config: Config, *, day: date, out: Path) -> Path | None:
    """Copy the champion that the run of `day` is judged against into a folder.

    Args:
        config: settings; locations.registry.
        day: partition key of the run.
        out: folder to write, replaced whole.

    Returns:
        `out`, or None where there was no champion before that day.

    Raises:
        ModelError: the pointer or the bundle it names is damaged.
    """
    storage = open_registry(config.locations)
    champion = champion_before(storage, day)
    if champion is None:
        return None
    fetch_bundle(storage, champion.version, out)
    return out


def switch_champion(
    storage: Storage,
    *,
    version: str,
    day: date,
    expected_version: str | None,
    why: str = "",
    blessing: str | None = None,
) -> Pointer:
    """Deploy a pushed bundle by one conditional write of the pointer.

    Args:
        storage: the registry.
        version, day: of the bundle that becomes the champion.
        expected_version: the champion that it was judged against; None: there was none.
        why, blessing: as in `Change`.

    Raises:
        Conflict: another champion is deployed, or somebody switched the pointer meanwhile.
    """
    pointer, tag = read_pointer(storage)
    current = pointer.champion.version if pointer else None
    if current != expected_version:
        raise Conflict(
            f"the champion is {current or 'none'}",
            expected=f"{expected_version or 'none'}, which the challenger was judged against",
            where=f"{storage.url}/{POINTER}",
            remedy="run the day again, so that it is judged against the champion of now",
        )
    champion = Champion(version, day, now())
    change = Change(champion.deployed_at, whoami(), "deploy", version, why, blessing)
    switched = pointer.crown(champion, change) if pointer else Pointer(champion, changes=(change,))
    storage.write_if(POINTER, switched.to_json(), version=tag)
    return switched


def rollback(storage: Storage, *, why: str = "") -> Pointer:
    """Deploy the champion before this one again; the one that goes is never deployed by a rerun.

    Where the one before was tried again as the canary, there is no canary any more.

    Raises:
        ModelError: there is no champion before, or its bundle is gone.
        Conflict: somebody switched the pointer meanwhile.
    """
    pointer, tag = read_pointer(storage)
    if pointer is None or pointer.previous is None:
        raise ModelError(
            "there is no earlier champion to go back to" if pointer else "nothing is deployed",
            where=f"{storage.url}/{POINTER}",
            remedy="deploy a model first",
        )
    previous = replace(pointer.previous, deployed_at=now())
    manifest = read_manifest(storage, previous.version)
    reason = f"rolled back from {pointer.champion.version} of {pointer.champion.day}" + (f": {why}" if why else "")
    blessing = manifest.files.get(VERDICT)
    change = Change(previous.deployed_at, whoami(), "rollback", previous.version, reason, blessing)
    switched = replace(
        pointer,
        champion=previous,
        canary=None if pointer.canary is not None and pointer.canary.version == previous.version else pointer.canary,
        history=pointer.history[:-1],
        withdrawn=(*pointer.withdrawn, pointer.champion),
        changes=(*pointer.changes, change),
    )
    storage.write_if(POINTER, switched.to_json(), version=tag)
    return switched


def whoami() -> str:
    """Who changes a pointer from here: user@machine."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def now() -> str:
    """The time that a change is recorded with."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_pointer(storage: Storage) -> tuple[Pointer | None, str | None]:
    """The pointer, and what `Storage.write_if` compares; None before the first deployment.

    Raises:
        ModelError: champion.json is damaged.
    """
    found = storage.read_versioned(POINTER)
    if found is None:
        return None, None
    try:
        return Pointer.from_json(found[0]), found[1]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"the champion pointer cannot be read ({error!r})",
            expected="champion.json as a deployment writes it",
            where=f"{storage.url}/{POINTER}",
            remedy="restore the file from a backup; if a newer program wrote it, upgrade this one",
        ) from error
