"""Make a bundle of the registry the champion or the canary, or take the canary away."""

from dataclasses import replace

from storyrec.errors import Conflict, ModelError
from storyrec.pointer import Canary, Champion, Change, Pointer
from storyrec.registry import BUNDLES, POINTER, VERDICT, now, read_pointer, whoami
from storyrec.registry_care import is_blessed, verify_bundle
from storyrec.storage import Storage


def promote(storage: Storage, version: str, *, why: str, seen: Pointer | None = None) -> Pointer:
    """Make a blessed bundle the champion; one that was rolled back too, since a person says so.

    Args:
        storage: the registry.
        version: of the bundle.
        why: for people.
        seen: the pointer that this was decided by; None: whatever it says now.

    Raises:
        ModelError: it is not in the registry whole, is not blessed, or is the champion.
        Conflict: somebody switched the pointer meanwhile.
    """
    pointer, tag = _read_as_seen(storage, seen)
    if pointer is not None and pointer.champion.version == version:
        raise ModelError(f"{version} is the champion", where=_where(storage), remedy="nothing is to be done")
    champion, blessing = _verified(storage, version)
    change = Change(champion.deployed_at, whoami(), "promote", version, why, blessing)
    switched = pointer.crown(champion, change) if pointer else Pointer(champion, changes=(change,))
    switched = switched.forgive(version)
    storage.write_if(POINTER, switched.to_json(), version=tag)
    return switched


def set_canary(
    storage: Storage,
    version: str,
    *,
    share: float,
    why: str,
    beside: str | None = None,
    seen: Pointer | None = None,
) -> Pointer:
    """Make a blessed bundle the canary, or give the canary another share of the users.

    Args:
        storage: the registry.
        version: of the bundle.
        share: as in `Canary`.
        why: for people.
        beside: the champion that it was judged against; None: whichever is deployed.
        seen: as for `promote`.

    Raises:
        ModelError: nothing is deployed yet; or the bundle is not there whole, is not blessed, or is the champion.
        Conflict: another champion is deployed, or somebody switched the pointer meanwhile.
    """
    pointer, tag = _read_as_seen(storage, seen)
    if pointer is not None and beside is not None and pointer.champion.version != beside:
        raise Conflict(
            f"the champion is {pointer.champion.version}",
            expected=f"{beside}, which the canary was judged against",
            where=_where(storage),
            remedy="run the day again, so that it is judged against the champion of now",
        )
    if pointer is None or pointer.champion.version == version:
        raise ModelError(
            "nothing is deployed that a canary could serve beside" if pointer is None else f"{version} is the champion",
            expected="another bundle than the champion's",
            where=_where(storage),
            remedy="promote a champion first" if pointer is None else "name a bundle of `storyrec registry list`",
        )
    verified, blessing = _verified(storage, version)
    at = verified.deployed_at
    is_new = pointer.canary is None or pointer.canary.version != version
    began = at if is_new or pointer.canary is None else pointer.canary.deployed_at
    canary = Canary(version, verified.day, began, share=share, since=at)
    change = Change(at, whoami(), "canary", version, f"{share:.0%} of the users: {why}", blessing)
    switched = replace(pointer.forgive(version), canary=canary, changes=(*pointer.changes, change))
    storage.write_if(POINTER, switched.to_json(), version=tag)
    return switched


def withdraw_canary(storage: Storage, version: str, *, why: str) -> Pointer:
    """Take the canary away; no rerun makes it one again.

    Raises:
        ModelError: that bundle is not the canary.
        Conflict: somebody switched the pointer meanwhile.
    """
    pointer, tag = read_pointer(storage)
    if pointer is None or pointer.canary is None or pointer.canary.version != version:
        raise ModelError(
            f"{version} is not the canary",
            expected=pointer.canary.version if pointer and pointer.canary else "a canary",
            where=_where(storage),
            remedy="see `storyrec registry show`",
        )
    canary = pointer.canary
    withdrawn = (*pointer.withdrawn, Champion(canary.version, canary.day, canary.deployed_at))
    change = Change(now(), whoami(), "withdraw", version, why, None)
    switched = replace(pointer, canary=None, withdrawn=withdrawn, changes=(*pointer.changes, change))
    storage.write_if(POINTER, switched.to_json(), version=tag)
    return switched


def _read_as_seen(storage: Storage, seen: Pointer | None) -> tuple[Pointer | None, str | None]:
    pointer, tag = read_pointer(storage)
    if seen is not None and pointer != seen:
        raise Conflict(
            "the pointer says something else than this was decided by",
            expected=f"champion {seen.champion.version}, canary {seen.canary.version if seen.canary else 'none'}",
            where=_where(storage),
            remedy="decide again by what it says now: `storyrec registry show`",
        )
    return pointer, tag


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
