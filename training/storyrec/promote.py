"""By hand: make a bundle of the registry the champion or the canary."""

from dataclasses import replace

from storyrec.errors import ModelError
from storyrec.pointer import Champion, Change, Pointer
from storyrec.registry import BUNDLES, POINTER, VERDICT, now, read_pointer, whoami
from storyrec.registry_care import is_blessed, verify_bundle
from storyrec.storage import Storage


def promote(storage: Storage, version: str, *, why: str) -> Pointer:
    """Make a blessed bundle the champion; one that was rolled back too, since a person says so.

    Raises:
        ModelError: it is not in the registry whole, is not blessed, or is the champion.
        Conflict: somebody switched the pointer meanwhile.
    """
    pointer, tag = read_pointer(storage)
    if pointer is not None and pointer.champion.version == version:
        raise ModelError(f"{version} is the champion", where=_where(storage), remedy="nothing is to be done")
    champion, blessing = _verified(storage, version)
    change = Change(champion.deployed_at, whoami(), "promote", version, why, blessing)
    switched = pointer.crown(champion, change) if pointer else Pointer(champion, changes=(change,))
    withdrawn = tuple(earlier for earlier in switched.withdrawn if earlier.version != version)
    switched = replace(switched, withdrawn=withdrawn)
    storage.write_if(POINTER, switched.to_json(), version=tag)
    return switched


def set_canary(storage: Storage, version: str | None, *, why: str) -> Pointer:
    """Make a blessed bundle the canary, or take the canary away.

    Raises:
        ModelError: nothing is deployed yet; or the bundle is not there whole, is not blessed, or is the champion.
        Conflict: somebody switched the pointer meanwhile.
    """
    pointer, tag = read_pointer(storage)
    if pointer is None or pointer.champion.version == version:
        raise ModelError(
            "nothing is deployed that a canary could serve beside" if pointer is None else f"{version} is the champion",
            expected="another bundle than the champion's",
            where=_where(storage),
            remedy="promote a champion first" if pointer is None else "name a bundle of `storyrec registry list`",
        )
    canary, blessing = _verified(storage, version) if version is not None else (None, None)
    change = Change(canary.deployed_at if canary else now(), whoami(), "canary", version, why, blessing)
    switched = replace(pointer, canary=canary, changes=(*pointer.changes, change))
    storage.write_if(POINTER, switched.to_json(), version=tag)
    return switched


def _verified(storage: Storage, version: str) -> tuple[Champion, str | None]:
    manifest = verify_bundle(storage, version)
    if not is_blessed(storage, version):
        raise ModelError(
            f"bundle {version} has no blessing",
            expected=f"a {VERDICT} that blesses this bundle",
            where=f"{storage.url}/{BUNDLES}/{version}",
            remedy="let bless_model judge it and deploy_model deploy it",
        )
    return Champion(version, manifest.day, now()), manifest.files.get(VERDICT)


def _where(storage: Storage) -> str:
    return f"{storage.url}/{POINTER}"
