"""The model registry: immutable bundles, and one pointer that says which of them is the champion.

Layout, a folder or an S3 prefix:

    bundles/<version>/...    a bundle; its manifest.json is written last, without it there is no bundle
    champion.json            the pointer; every change of it is one conditional write

The pointer carries the champions before it, so that a day can be run again against the champion it
was first judged against, and those that a person rolled back, so that no rerun deploys them again.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path

from storyrec.config import Config
from storyrec.errors import Conflict, ModelError
from storyrec.manifest import MANIFEST, Manifest, verify_folder
from storyrec.storage import Storage, open_storage, write_file, write_folder

POINTER = "champion.json"
BUNDLES = "bundles"


@dataclass(frozen=True)
class Champion:
    """A bundle that is or was deployed.

    Attributes:
        version: of the bundle.
        day: the day whose run trained it.
        deployed_at: when the pointer was switched to it, ISO 8601, UTC.
    """

    version: str
    day: date
    deployed_at: str


@dataclass(frozen=True)
class Pointer:
    """What champion.json says.

    Attributes:
        champion: the deployed bundle.
        history: the champions before it, oldest first.
        withdrawn: champions that were rolled back, oldest first.
        verdict: summary of the blessing that the champion was deployed on.
    """

    champion: Champion
    history: tuple[Champion, ...] = ()
    withdrawn: tuple[Champion, ...] = ()
    verdict: Mapping[str, object] | None = None

    @property
    def previous(self) -> Champion | None:
        """The champion that a rollback would deploy again."""
        return self.history[-1] if self.history else None

    def to_json(self) -> bytes:
        """The bytes of champion.json."""
        previous = self.previous
        content = {
            **_champion_json(self.champion),
            "previous": {"version": previous.version, "day": previous.day.isoformat()} if previous else None,
            "verdict": self.verdict,
            "history": [_champion_json(champion) for champion in self.history],
            "withdrawn": [_champion_json(champion) for champion in self.withdrawn],
        }
        return json.dumps(content, indent=2, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Pointer":
        """The inverse of `to_json`; ValueError, KeyError or TypeError where it is no pointer."""
        read = json.loads(content)
        return cls(
            champion=_champion(read),
            history=tuple(_champion(entry) for entry in read["history"]),
            withdrawn=tuple(_champion(entry) for entry in read["withdrawn"]),
            verdict=read["verdict"],
        )


def read_champion(storage: Storage) -> Pointer | None:
    """What is deployed; None before the first deployment.

    Raises:
        ModelError: champion.json is damaged.
    """
    return _read(storage)[0]


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


def fetch_bundle(storage: Storage, version: str, folder: Path) -> None:
    """Copy a bundle out of the registry into a folder that appears whole, its sums verified.

    Raises:
        ModelError: there is no such bundle, its upload never finished, or a file was changed.
    """
    prefix = f"{BUNDLES}/{version}"
    where = f"{storage.url}/{prefix}"
    found = storage.read_versioned(f"{prefix}/{MANIFEST}")
    if found is None:
        raise ModelError(
            f"bundle {version} is not in the registry or its upload never finished: it has no {MANIFEST}",
            where=where,
            remedy="run the deployment of its day again, or roll back",
        )
    manifest = Manifest.from_json(found[0], where=where)
    if manifest.version != version:
        raise ModelError(
            f"the manifest names version {manifest.version}", expected=version, where=where, remedy="deploy it again"
        )
    with write_folder(folder) as copy:
        for name in manifest.files:
            content = storage.read_versioned(f"{prefix}/{name}")
            if content is None:
                raise ModelError(f"the bundle has no {name}", where=where, remedy="roll back or deploy it again")
            write_file(copy / name, content[0])
        write_file(copy / MANIFEST, found[0])
        verify_folder(copy, where=where)


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
    storage = open_storage(config.locations.registry, s3_endpoint=config.locations.s3_endpoint)
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
    verdict: Mapping[str, object] | None = None,
) -> Pointer:
    """Deploy a pushed bundle by one conditional write of the pointer.

    Args:
        storage: the registry.
        version, day: of the bundle that becomes the champion.
        expected_version: the champion that it was judged against; None: there was none.
        verdict: summary of its blessing.

    Raises:
        Conflict: another champion is deployed, or somebody switched the pointer meanwhile.
    """
    pointer, tag = _read(storage)
    current = pointer.champion.version if pointer else None
    if current != expected_version:
        raise Conflict(
            f"the champion is {current or 'none'}",
            expected=f"{expected_version or 'none'}, which the challenger was judged against",
            where=f"{storage.url}/{POINTER}",
            remedy="run the day again, so that it is judged against the champion of now",
        )
    champion = Champion(version, day, _now())
    if pointer is None:
        switched = Pointer(champion, verdict=verdict)
    else:
        switched = replace(pointer, champion=champion, history=(*pointer.history, pointer.champion), verdict=verdict)
    storage.write_if(POINTER, switched.to_json(), version=tag)
    return switched


def rollback(storage: Storage) -> Pointer:
    """Deploy the champion before this one again; the one that goes is never deployed by a rerun.

    Raises:
        ModelError: there is no champion before, or its bundle is gone.
        Conflict: somebody switched the pointer meanwhile.
    """
    pointer, tag = _read(storage)
    if pointer is None or pointer.previous is None:
        raise ModelError(
            "there is no earlier champion to go back to" if pointer else "nothing is deployed",
            where=f"{storage.url}/{POINTER}",
            remedy="deploy a model first",
        )
    previous = pointer.previous
    if not storage.exists(f"{BUNDLES}/{previous.version}/{MANIFEST}"):
        raise ModelError(
            f"the earlier champion {previous.version} is not in the registry any more",
            where=f"{storage.url}/{BUNDLES}",
            remedy="restore its bundle, or deploy another model",
        )
    switched = Pointer(
        champion=replace(previous, deployed_at=_now()),
        history=pointer.history[:-1],
        withdrawn=(*pointer.withdrawn, pointer.champion),
        verdict={"reasons": [f"rolled back from {pointer.champion.version} of {pointer.champion.day}"]},
    )
    storage.write_if(POINTER, switched.to_json(), version=tag)
    return switched


def _read(storage: Storage) -> tuple[Pointer | None, str | None]:
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
            remedy="restore the file from a backup",
        ) from error


def _champion(entry: Mapping[str, str]) -> Champion:
    return Champion(entry["version"], date.fromisoformat(entry["day"]), entry["deployed_at"])


def _champion_json(champion: Champion) -> dict[str, str]:
    return {name: str(value) for name, value in asdict(champion).items()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
