"""The gate: may the challenger become the champion? It fails closed.

A blessing is given only when every rule was judged and holds. A figure that is missing, a rule
without a threshold or an error while judging is a rule that does not hold. Paper: Eq. 12 for the
per-user AUC. Suffixes: U = held-out users, R = bootstrap resamples.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from storyrec.config import Config
from storyrec.manifest import VERSION
from storyrec.storage import write_file, write_folder

EVALUATION = "evaluation.json"
PER_USER = "per_user.npz"
VERDICT = "verdict.json"
AGREEMENT = 1e-4  # between a reported mean and the mean of the users' values
MAX_DRAWS = 2_000_000  # users drawn at once: bounds the memory of the bootstrap

T = TypeVar("T")
Floats = npt.NDArray[np.float64]
Outcome = tuple[bool, dict[str, float | str | bool | None], str]


@dataclass(frozen=True)
class Judged:
    """What the gate knows of a model; None where a figure is missing.

    Attributes:
        version: of the bundle.
        per_user_auc: mean over the scorable users. Paper: Eq. 12.
        num_not_finite: scores that were NaN or infinite.
        onnx_difference: largest |difference| between the served probabilities and torch's.
        user_ids_U: held-out users, [U] int64.
        auc_U: per-user AUC, [U] float; NaN where a user has clicks or non-clicks only.
    """

    version: str | None
    per_user_auc: float | None
    num_not_finite: int | None
    onnx_difference: float | None
    user_ids_U: npt.NDArray[np.int64] | None
    auc_U: Floats | None


@dataclass(frozen=True)
class Thresholds:
    """What a challenger must reach; a rule whose threshold is None does not hold.

    Attributes:
        allow_first_model: whether a challenger may pass without a champion to compare with.
        min_per_user_auc: absolute floor.
        min_users: scorable users.
        margin: per-user AUC that the challenger may lose against the champion.
        confidence: of the one-sided bound on that loss.
        num_resamples, seed: of the bootstrap.
        max_onnx_difference: probability.
    """

    allow_first_model: bool | None
    min_per_user_auc: float | None
    min_users: int | None
    margin: float | None
    confidence: float | None
    num_resamples: int | None
    max_onnx_difference: float | None
    seed: int | None


@dataclass(frozen=True)
class Rule:
    """One rule as it was judged.

    Attributes:
        name: of the rule.
        passed: whether it holds.
        figures: what it was judged by.
        threshold: what it asks for.
        reason: the same for people.
    """

    name: str
    passed: bool
    figures: Mapping[str, float | str | bool | None]
    threshold: float | str | bool | None
    reason: str


@dataclass(frozen=True)
class Verdict:
    """The recorded judgement of one challenger.

    Attributes:
        blessed: whether every rule holds.
        day: partition key of the run; None if the evaluation does not say.
        challenger: version of the judged bundle; None if the evaluation does not say.
        champion: version of the bundle it was compared with; None: there was none.
        rules: in the order of judging.
    """

    blessed: bool
    day: str | None
    challenger: str | None
    champion: str | None
    rules: tuple[Rule, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why not, rule by rule; or, of a blessed challenger, why."""
        return tuple(rule.reason for rule in self.rules if rule.passed == self.blessed)


def bless(challenger: Judged, champion: Judged | None, *, thresholds: Thresholds, day: str | None) -> Verdict:
    """Judge a challenger against the champion on the same held-out impressions.

    Args:
        challenger: the model under judgement.
        champion: the deployed model; None before there is one.
        thresholds: what to reach.
        day: partition key of the run.

    Returns:
        The verdict; blessed only if every rule could be judged and holds.
    """
    judges: list[tuple[str, float | str | bool | None, Callable[[], Outcome]]] = [
        ("names", "a bundle version and a day", lambda: _names(challenger, champion, day)),
        ("no_nan", "finite scores", lambda: _no_nan(challenger, champion)),
        ("enough_users", thresholds.min_users, lambda: _enough_users(challenger, thresholds)),
        ("per_user_auc_floor", thresholds.min_per_user_auc, lambda: _floor(challenger, thresholds)),
        ("onnx_parity", thresholds.max_onnx_difference, lambda: _parity(challenger, thresholds)),
    ]
    if champion is None:
        judges.append(("first_model", thresholds.allow_first_model, lambda: _first_model(thresholds)))
    else:
        bound = None if thresholds.margin is None else -thresholds.margin
        judges.append(("not_worse_than_champion", bound, lambda: _not_worse(challenger, champion, thresholds)))
    rules = []
    for name, threshold, judge in judges:
        try:
            passed, figures, reason = judge()
        except Exception as error:  # whatever it was: a rule that cannot be judged does not hold
            passed, figures, reason = False, {}, f"{name} could not be judged: {error}"
        rules.append(Rule(name, bool(passed), figures, threshold, reason))
    return Verdict(
        blessed=all(rule.passed for rule in rules),
        day=day,
        challenger=challenger.version,
        champion=champion.version if champion else None,
        rules=tuple(rules),
    )


def lower_bound(difference_U: Floats, *, confidence: float, num_resamples: int, seed: int) -> float:
    """One-sided bootstrap bound of a mean over users: it is at least this with that confidence.

    Args:
        difference_U: one value per user, [U] float, finite.
        confidence: such as 0.95.
        num_resamples: R.
        seed: of the resampling.
    """
    generator = np.random.default_rng(seed)
    num_users = len(difference_U)
    means_R = np.empty(num_resamples)
    step = max(1, MAX_DRAWS // num_users)
    for start in range(0, num_resamples, step):
        size = min(step, num_resamples - start)
        drawn_RU = generator.integers(num_users, size=(size, num_users))
        means_R[start : start + size] = difference_U[drawn_RU].mean(axis=1)
    return float(np.quantile(means_R, 1 - confidence))


def bless_model(config: Config, *, evaluation: Path, out: Path) -> bool:
    """Judge an evaluation and write verdict.json; bad input is a challenger that is not blessed.

    Args:
        config: settings; gate.
        evaluation: folder that `evaluate_model` wrote.
        out: folder to write, replaced whole.

    Returns:
        Whether the challenger is blessed.
    """
    verdict = judge_evaluation(evaluation, thresholds=Thresholds(**config.gate.model_dump()))
    with write_folder(out) as folder:
        write_file(folder / VERDICT, verdict_json(verdict))
    return verdict.blessed


def judge_evaluation(evaluation: Path, *, thresholds: Thresholds) -> Verdict:
    """Read evaluation.json and per_user.npz and bless or not; never raises for what they hold."""
    try:
        read = json.loads((evaluation / EVALUATION).read_bytes())
        with np.load(evaluation / PER_USER, allow_pickle=False) as arrays:
            per_user = {name: arrays[name] for name in arrays.files}
        day = read["day"]
        challenger = _judged(read["challenger"], per_user, "challenger_auc")
        champion = None if read["champion"] is None else _judged(read["champion"], per_user, "champion_auc")
    except Exception as error:  # a damaged archive raises whatever its decoder raises
        reason = f"the evaluation could not be judged: {type(error).__name__}: {error}"
        return Verdict(False, None, None, None, (Rule("evaluation", False, {}, "readable figures", reason),))
    return bless(challenger, champion, thresholds=thresholds, day=day)


def verdict_json(verdict: Verdict) -> bytes:
    """The bytes of verdict.json; a figure that is not finite becomes null."""
    content = asdict(verdict) | {"reasons": verdict.reasons}
    return json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False).encode()


def _names(challenger: Judged, champion: Judged | None, day: str | None) -> Outcome:
    versions = [challenger.version] if champion is None else [challenger.version, champion.version]
    named = all(isinstance(version, str) and VERSION.fullmatch(version) for version in versions)
    figures: dict[str, float | str | bool | None] = {"challenger": challenger.version, "day": day}
    if champion is not None:
        figures["champion"] = champion.version
    date.fromisoformat(day or "")
    if not named:
        return False, figures, f"the evaluation does not name its bundles: {figures}"
    against = f"champion {champion.version}" if champion else "no champion"
    return True, figures, f"challenger {challenger.version} of {day} against {against}"


def _no_nan(challenger: Judged, champion: Judged | None) -> Outcome:
    parts = {"challenger": challenger} | ({} if champion is None else {"champion": champion})
    bad = []
    for name, model in parts.items():
        values_U = _known(model.auc_U, f"{name}'s per-user AUC")
        outside = bool(((values_U < 0) | (values_U > 1)).any() or np.isinf(values_U).any())
        if _number(model.num_not_finite, f"{name}'s num_not_finite") != 0 or outside:
            bad.append(name)
    figures: dict[str, float | str | bool | None] = {name: name in bad for name in parts}
    if bad:
        return False, figures, f"scores of the {' and the '.join(bad)} are not finite"
    return True, figures, "all scores are finite"


def _enough_users(challenger: Judged, thresholds: Thresholds) -> Outcome:
    needed = _known(thresholds.min_users, "gate.min_users")
    num_users = int(np.isfinite(_known(challenger.auc_U, "the challenger's per-user AUC")).sum())
    relation = "at least" if num_users >= needed else "but it takes"
    return num_users >= needed, {"num_users": num_users}, f"{num_users:,} scorable users, {relation} {needed:,}"


def _floor(challenger: Judged, thresholds: Thresholds) -> Outcome:
    floor = _number(thresholds.min_per_user_auc, "gate.min_per_user_auc")
    reported = _number(challenger.per_user_auc, "the challenger's per-user AUC")
    mean = float(np.nanmean(_known(challenger.auc_U, "the challenger's per-user AUC")))
    figures: dict[str, float | str | bool | None] = {"per_user_auc": reported, "mean_of_users": mean}
    if not abs(mean - reported) <= AGREEMENT:
        return False, figures, f"the reported per-user AUC {reported:.4f} is not the mean over the users, {mean:.4f}"
    passed = reported >= floor
    return passed, figures, f"per-user AUC {reported:.4f} {'reaches' if passed else 'is below'} the floor {floor:.4f}"


def _parity(challenger: Judged, thresholds: Thresholds) -> Outcome:
    largest = _number(thresholds.max_onnx_difference, "gate.max_onnx_difference")
    difference = _number(challenger.onnx_difference, "the ONNX difference")
    passed = 0 <= difference <= largest
    relation = "within" if passed else "above"
    reason = f"served scores differ from torch's by {difference:.1e}, {relation} {largest:.0e}"
    return passed, {"onnx_difference": difference}, reason


def _first_model(thresholds: Thresholds) -> Outcome:
    allowed = _known(thresholds.allow_first_model, "gate.allow_first_model") is True
    reason = "there is no champion yet; a first model is " + ("allowed" if allowed else "not allowed by the settings")
    return allowed, {"allow_first_model": allowed}, reason


def _not_worse(challenger: Judged, champion: Judged, thresholds: Thresholds) -> Outcome:
    margin = _number(thresholds.margin, "gate.margin")
    confidence = _number(thresholds.confidence, "gate.confidence")
    challenger_U = _known(challenger.auc_U, "the challenger's per-user AUC")
    champion_U = _known(champion.auc_U, "the champion's per-user AUC")
    users_U = _known(challenger.user_ids_U, "the held-out users")
    if not np.array_equal(users_U, _known(champion.user_ids_U, "the champion's users")):
        raise ValueError("challenger and champion were judged on different users")
    if not len(users_U) == len(challenger_U) == len(champion_U) == len(np.unique(users_U)):
        raise ValueError("the per-user figures do not belong to distinct users")
    scorable_U = np.isfinite(challenger_U)
    if not np.array_equal(scorable_U, np.isfinite(champion_U)):
        raise ValueError("challenger and champion were judged on different impressions: other users are scorable")
    difference_U = (challenger_U - champion_U)[scorable_U]
    bound = lower_bound(
        difference_U,
        confidence=confidence,
        num_resamples=_known(thresholds.num_resamples, "gate.num_resamples"),
        seed=_known(thresholds.seed, "gate.seed"),
    )
    mean = float(difference_U.mean())
    passed = math.isfinite(bound) and bound > -margin
    figures: dict[str, float | str | bool | None] = {
        "difference": mean,
        "lower_bound": bound,
        "confidence": confidence,
        "num_users": len(difference_U),
        "num_better": int((difference_U > 0).sum()),
        "num_worse": int((difference_U < 0).sum()),
    }
    reason = (
        f"per-user AUC {mean:+.4f} against champion {champion.version}, at least {bound:+.4f} with {confidence:.0%} "
        f"confidence; {'more' if passed else 'but it takes more'} than {-margin:+.4f}"
    )
    return passed, figures, reason


def _judged(model: Mapping[str, object], per_user: Mapping[str, npt.NDArray[np.generic]], column: str) -> Judged:
    metrics = model.get("metrics")
    metrics = metrics if isinstance(metrics, dict) else {}
    users, values = per_user.get("user_ids"), per_user.get(column)
    version = model.get("version")
    difference = model.get("onnx_difference")
    return Judged(
        version=version if isinstance(version, str) else None,
        per_user_auc=metrics.get("per_user_auc"),
        num_not_finite=metrics.get("num_not_finite"),
        onnx_difference=difference if isinstance(difference, int | float) else None,
        user_ids_U=None if users is None else users.astype(np.int64),
        auc_U=None if values is None else values.astype(np.float64),
    )


def _known(value: T | None, name: str) -> T:
    if value is None:
        raise ValueError(f"{name} is missing")
    return value


def _number(value: float | None, name: str) -> float:
    number = _known(value, name)
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise ValueError(f"{name} is {number!r}, which is no number")
    return float(number)


def _finite(content: object) -> object:
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, Mapping):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content
