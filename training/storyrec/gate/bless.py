"""The gate: may the challenger become the champion? It fails closed.

A blessing is given only when every rule was judged and holds. A figure that is missing, not finite or contradicts the
scores, a rule without a threshold or an error while judging is a rule that does not hold.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from storyrec.card import MODEL_CARD, model_card
from storyrec.config import Config
from storyrec.gate.comparison import Comparison, compare, judge_gain, judge_slice
from storyrec.gate.evidence import Evidence, number, read_evidence
from storyrec.gate.rules import (
    judge_auc_floor,
    judge_calibration,
    judge_drift,
    judge_figures,
    judge_first_model,
    judge_log_loss_ceiling,
    judge_names,
    judge_ndcg_floor,
    judge_users,
)
from storyrec.gate.serving_rules import judge_latency, judge_parity, judge_rehearsal, judge_size
from storyrec.gate.thresholds import Margin, Thresholds
from storyrec.gate.verdict import SLICE, VERDICT, Outcome, Rule, Verdict, verdict_json
from storyrec.slices import SLICES
from storyrec.storage import Storage, open_storage, write_file, write_folder

NUM_EARLIER_RUNS = 7
FIGURES = {
    "per_user_auc": "per-user AUC",
    "ndcg": "NDCG",
    "log_loss": "log loss",
    "calibration": "calibration error",
}


def bless_model(config: Config, *, evaluation: Path, out: Path) -> bool:
    """Judge an evaluation; write verdict.json and the model card. Bad input is a challenger that is not blessed.

    Args:
        config: settings; gate, locations.
        evaluation: folder that `evaluate_model` wrote.
        out: folder to write, replaced whole.

    Returns:
        Whether the challenger is blessed.

    Raises:
        StorageError: the working storage, where the earlier runs are, does not answer.
    """
    sections = config.gate.model_dump()
    parts: dict[str, Any] = {
        name: Margin(**value) if isinstance(value, dict) else value for name, value in sections.items()
    }
    work = open_storage(config.locations.work, s3_endpoint=config.locations.s3_endpoint)
    verdict = judge_evaluation(evaluation, thresholds=Thresholds(**parts), work=work)
    content = verdict_json(verdict)
    with write_folder(out) as folder:
        write_file(folder / MODEL_CARD, model_card(evaluation, verdict=json.loads(content)).encode())
        write_file(folder / VERDICT, content)
    return verdict.blessed


def judge_evaluation(evaluation: Path, *, thresholds: Thresholds, work: Storage) -> Verdict:
    """Read an evaluation and the earlier runs, and bless or not; never raises for what the evaluation holds."""
    try:
        evidence = read_evidence(evaluation)
    except Exception as error:  # a damaged archive raises whatever its decoder raises
        reason = f"the evaluation could not be judged: {type(error).__name__}: {error}"
        return Verdict(False, None, None, None, (Rule("evaluation", False, {}, "readable figures", reason),))
    return bless(evidence, thresholds=thresholds, earlier=calibration_errors(work, before=evidence.day))


def calibration_errors(work: Storage, *, before: str) -> tuple[float, ...]:
    """The challengers' calibration errors in the verdicts of the last runs before a day, oldest first."""
    found = []
    for key in work.list("runs/"):
        run, _, name = key.removeprefix("runs/dt=").partition("/")
        if name == VERDICT and run < before:
            with contextlib.suppress(ValueError, KeyError, TypeError, StopIteration):  # a run that was never judged
                rules = json.loads(work.read(key))["rules"]
                rule = next(rule for rule in rules if rule["name"] == "calibration_error")
                found.append(number(rule["figures"]["error"], "error"))
    return tuple(found[-NUM_EARLIER_RUNS:])


def bless(evidence: Evidence, *, thresholds: Thresholds, earlier: Sequence[float]) -> Verdict:
    """Judge a challenger against the champion on the same held-out impressions.

    Args:
        evidence: of the evaluation.
        thresholds: what to reach.
        earlier: calibration errors of the earlier runs' challengers.

    Returns:
        The verdict; blessed only if every rule could be judged and holds.
    """
    judges: dict[str, Callable[[], Outcome]] = {
        "names": lambda: judge_names(evidence),
        "figures": lambda: judge_figures(evidence),
        "enough_users": lambda: judge_users(evidence, thresholds),
        "per_user_auc_floor": lambda: judge_auc_floor(evidence, thresholds),
        "ndcg_floor": lambda: judge_ndcg_floor(evidence, thresholds),
        "log_loss_ceiling": lambda: judge_log_loss_ceiling(evidence, thresholds),
        "onnx_parity": lambda: judge_parity(evidence, thresholds),
        "bundle_size": lambda: judge_size(evidence, thresholds),
        "rehearsal": lambda: judge_rehearsal(evidence, thresholds),
        "latency": lambda: judge_latency(evidence, thresholds),
        "calibration_error": lambda: judge_calibration(evidence, thresholds, earlier=earlier),
    }
    if evidence.champion is None:
        judges["first_model"] = lambda: judge_first_model(thresholds)
    else:
        judges["score_drift"] = lambda: judge_drift(evidence, thresholds)
        judges |= _comparisons(evidence, thresholds)
    rules = tuple(_rule(name, judge) for name, judge in judges.items())
    return Verdict(
        blessed=all(rule.passed for rule in rules),
        day=evidence.day,
        challenger=evidence.challenger.version,
        champion=evidence.champion.version if evidence.champion else None,
        rules=rules,
    )


def _comparisons(evidence: Evidence, thresholds: Thresholds) -> dict[str, Callable[[], Outcome]]:
    @functools.cache
    def comparison() -> Comparison:
        num_resamples = number(thresholds.num_resamples, "gate.num_resamples")
        return compare(evidence, num_resamples=int(num_resamples), seed=int(number(thresholds.seed, "gate.seed")))

    def of_figure(name: str, label: str) -> Callable[[], Outcome]:
        return lambda: judge_gain(comparison(), name, getattr(thresholds, name), label=label)

    def of_slice(name: str) -> Callable[[], Outcome]:
        return lambda: judge_slice(comparison(), name, thresholds)

    figures = {f"{name}_against_champion": of_figure(name, label) for name, label in FIGURES.items()}
    return figures | {SLICE + name: of_slice(SLICE + name) for name in SLICES}


def _rule(name: str, judge: Callable[[], Outcome]) -> Rule:
    try:
        outcome = judge()
    except Exception as error:  # whatever it was: a rule that cannot be judged does not hold
        return Rule(name, False, {}, None, f"{name} could not be judged: {error}")
    return Rule(name, bool(outcome.passed), outcome.figures, outcome.threshold, outcome.reason)
