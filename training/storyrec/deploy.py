"""The steps `deploy_model` and `keep_champion`: the end of a day's run, either way.

A blessed bundle is pushed, fetched back and queried, and then the pointer is switched. Whatever
happens, runs/dt=D/outcome.json says what and why; it is written last.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

from storyrec.bundle import Bundle
from storyrec.card import MODEL_CARD
from storyrec.config import Config
from storyrec.errors import Conflict
from storyrec.gate.evidence import EVALUATION
from storyrec.gate.verdict import VERDICT
from storyrec.manifest import Manifest, verify_folder
from storyrec.pointer import Pointer
from storyrec.promote import set_canary
from storyrec.registry import fetch_bundle, open_registry, push_bundle, read_champion, switch_champion
from storyrec.storage import Storage, open_storage

OUTCOME = "outcome.json"
REPORT = "report.html"

Status = Literal["deployed", "already deployed", "in rollout", "not deployed"]


@dataclass(frozen=True)
class Outcome:
    """How a day's run ended.

    Attributes:
        day: partition key of the run.
        status: the same as `deployed`, told apart for a run that is run again; "in rollout" where the bundle is the
            canary: `storyrec rollout` makes it the champion, or withdraws it.
        deployed: whether the day's bundle is or was made the champion.
        version: of the day's bundle.
        previous: version that served before; None: none did.
        champion: version that serves now; None: none does.
        reasons: why, for people.
    """

    day: date
    status: Status
    deployed: bool
    version: str
    previous: str | None
    champion: str | None
    reasons: tuple[str, ...]

    def to_json(self) -> bytes:
        """The bytes of outcome.json."""
        content = self.__dict__ | {"day": self.day.isoformat()}
        return json.dumps(content, indent=2, ensure_ascii=False).encode()


def deploy_model(config: Config, *, bundle: Path, evaluation: Path, verdict: Path) -> Outcome:
    """Make a blessed bundle the champion, or with `rollout.by_canary` the canary, or record why not.

    Args:
        config: settings; locations, rollout.
        bundle: folder that `pack_bundle` wrote.
        evaluation: folder that `evaluate_model` wrote.
        verdict: folder that `bless_model` wrote.

    Returns:
        The outcome, also in runs/dt=D/outcome.json. Not deployed, with the champion as it was, if the
        verdict is not a blessing of exactly this bundle or another champion than the judged one is
        deployed.

    Raises:
        ModelError: the bundle is damaged; nothing was switched.
        StorageError: a place refuses; nothing was switched.
    """
    manifest = verify_folder(bundle)
    registry = open_registry(config.locations)
    blessing = _read_verdict(verdict)
    refusals = _refusals(blessing, manifest)
    if refusals:
        outcome = _not_deployed(read_champion(registry), manifest, refusals)
    else:
        outcome = _deploy(
            registry,
            bundle,
            manifest,
            evaluation=evaluation,
            verdict=verdict,
            blessing=blessing,
            canary_share=config.rollout.shares[0] if config.rollout.by_canary else None,
        )
    _record(config, outcome, evaluation=evaluation, verdict=verdict)
    return outcome


def keep_champion(config: Config, *, bundle: Path, verdict: Path, evaluation: Path | None = None) -> Outcome:
    """Record that a day's bundle was not blessed; what is deployed stays.

    Args:
        config: settings; locations.
        bundle: folder that `pack_bundle` wrote.
        verdict: folder that `bless_model` wrote.
        evaluation: folder that `evaluate_model` wrote; kept beside the outcome.

    Returns:
        The outcome, also in runs/dt=D/outcome.json.
    """
    manifest = verify_folder(bundle)
    reasons = _refusals(_read_verdict(verdict), manifest) or ("the run asked to keep the champion",)
    outcome = _not_deployed(read_champion(open_registry(config.locations)), manifest, reasons)
    _record(config, outcome, evaluation=evaluation, verdict=verdict)
    return outcome


def _deploy(
    registry: Storage,
    bundle: Path,
    manifest: Manifest,
    *,
    evaluation: Path,
    verdict: Path,
    blessing: Mapping[str, Any],
    canary_share: float | None,
) -> Outcome:
    pointer = read_champion(registry)
    settled = _settled(pointer, manifest, judged_against=blessing["champion"])
    if settled is not None:
        return settled
    try:
        paths = (evaluation / EVALUATION, verdict / VERDICT, verdict / MODEL_CARD)
        records = {path.name: path.read_bytes() for path in paths}
    except OSError as error:
        reason = f"what it was blessed on cannot be read: {error.filename}: {error.strerror}"
        return _not_deployed(pointer, manifest, (reason,))
    push_bundle(registry, bundle, records=records)
    with tempfile.TemporaryDirectory(prefix="storyrec-") as scratch:
        query_pushed(registry, manifest.version, Path(scratch) / "fetched")
    reasons = tuple(blessing["reasons"])
    try:
        if canary_share is not None and pointer is not None:
            tried = set_canary(
                registry,
                manifest.version,
                share=canary_share,
                why="; ".join(reasons),
                beside=blessing["champion"],
            )
            return _in_rollout(tried, manifest)
        switched = switch_champion(
            registry,
            version=manifest.version,
            day=manifest.day,
            expected_version=blessing["champion"],
            why="; ".join(reasons),
            blessing=hashlib.sha256(records[VERDICT]).hexdigest(),
        )
    except Conflict as conflict:
        return _not_deployed(read_champion(registry), manifest, (conflict.found, f"expected: {conflict.expected}"))
    previous = switched.previous.version if switched.previous else None
    return Outcome(manifest.day, "deployed", True, manifest.version, previous, manifest.version, reasons)


def query_pushed(registry: Storage, version: str, folder: Path) -> None:
    """Fetch a pushed bundle back, load it as the server does and score a few stories with it.

    Raises:
        ModelError: it cannot be fetched whole, loaded or queried, or a score is no probability.
    """
    fetch_bundle(registry, version, folder)
    Bundle.load(folder).probe()


def _settled(pointer: Pointer | None, manifest: Manifest, *, judged_against: str | None) -> Outcome | None:
    """The outcome where there is nothing to switch; None where there is."""
    if pointer is None:
        return None
    current = pointer.champion
    if (current.version, current.day) == (manifest.version, manifest.day):
        previous = pointer.previous.version if pointer.previous else None
        reason = f"it was deployed at {current.deployed_at}"
        return Outcome(manifest.day, "already deployed", True, manifest.version, previous, manifest.version, (reason,))
    for earlier, before in zip(pointer.history, (None, *pointer.history), strict=False):
        if earlier.version == manifest.version:
            previous = before.version if before else None
            reason = f"it was deployed at {earlier.deployed_at}; since then {current.version} of {current.day} was"
            return Outcome(
                manifest.day, "already deployed", True, manifest.version, previous, current.version, (reason,)
            )
    if any(withdrawn.version == manifest.version for withdrawn in pointer.withdrawn):
        return _not_deployed(pointer, manifest, ("it served before and was rolled back or withdrawn",))
    if pointer.canary is not None and pointer.canary.version == manifest.version:
        return _in_rollout(pointer, manifest)
    for role, deployed in (("champion", current), ("canary", pointer.canary)):
        if deployed is not None and deployed.day > manifest.day:
            reason = f"the {role} {deployed.version} is of {deployed.day}, a later day"
            return _not_deployed(pointer, manifest, (reason,))
    if current.version != judged_against:
        reason = f"it was judged against {judged_against or 'no champion'}, but {current.version} is deployed"
        return _not_deployed(pointer, manifest, (reason,))
    return None


def _refusals(blessing: Mapping[str, Any], manifest: Manifest) -> tuple[str, ...]:
    """Why a verdict is no blessing of this bundle; empty if it is one."""
    if blessing.get("blessed") is not True:
        reasons = blessing.get("reasons")
        return tuple(str(reason) for reason in reasons) if reasons else ("the verdict could not be judged",)
    if blessing.get("challenger") != manifest.version:
        return (f"the verdict blesses {blessing.get('challenger')}, this bundle is {manifest.version}",)
    if blessing.get("day") != manifest.day.isoformat():
        return (f"the verdict is of {blessing.get('day')}, this bundle of {manifest.day}",)
    if "champion" not in blessing or not blessing.get("reasons"):
        return ("the verdict does not say what the bundle was judged against, and why it was blessed",)
    return ()


def _read_verdict(verdict: Path) -> Mapping[str, Any]:
    try:
        read = json.loads((verdict / VERDICT).read_bytes())
    except (OSError, ValueError) as error:
        read = {"reasons": [f"the verdict could not be read: {error}"]}
    return read if isinstance(read, dict) else {}


def _in_rollout(pointer: Pointer, manifest: Manifest) -> Outcome:
    assert pointer.canary is not None
    champion = pointer.champion.version
    reason = f"it is the canary since {pointer.canary.deployed_at}, for {pointer.canary.share:.0%} of the users"
    return Outcome(manifest.day, "in rollout", False, manifest.version, champion, champion, (reason,))


def _not_deployed(pointer: Pointer | None, manifest: Manifest, reasons: tuple[str, ...]) -> Outcome:
    champion = pointer.champion.version if pointer else None
    return Outcome(manifest.day, "not deployed", False, manifest.version, champion, champion, reasons)


def _record(config: Config, outcome: Outcome, *, evaluation: Path | None, verdict: Path) -> None:
    """Keep what a person wants to see of the run; the outcome last."""
    work = open_storage(config.locations.work, s3_endpoint=config.locations.s3_endpoint)
    prefix = f"runs/dt={outcome.day}"
    sources = [verdict / VERDICT, verdict / MODEL_CARD]
    if evaluation is not None:
        sources += [evaluation / EVALUATION, evaluation / REPORT]
    for source in sources:
        if source.is_file():
            work.write(f"{prefix}/{source.name}", source.read_bytes())
    work.write(f"{prefix}/{OUTCOME}", outcome.to_json())
