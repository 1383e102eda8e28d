"""The rules about the bundle as a thing that serves: parity, size, golden requests, latency.

Each takes the evidence and gives its outcome; it raises where it cannot be judged.
"""

from storyrec.gate.evidence import Evidence, number
from storyrec.gate.thresholds import Thresholds
from storyrec.gate.verdict import Outcome, Value


def judge_parity(evidence: Evidence, thresholds: Thresholds) -> Outcome:
    """The packed ranker scores as torch does."""
    largest = number(thresholds.max_onnx_difference, "gate.max_onnx_difference")
    difference = number(evidence.onnx_difference, "the ONNX difference")
    passed = 0 <= difference <= largest
    reason = f"packed scores differ from torch's by {difference:.1e}, {'within' if passed else 'above'} {largest:.0e}"
    return Outcome(passed, {"onnx_difference": difference}, largest, reason)


def judge_size(evidence: Evidence, thresholds: Thresholds) -> Outcome:
    """The bundle is no larger than servers take, and did not grow at a bound."""
    largest = number(thresholds.max_bundle_megabytes, "gate.max_bundle_megabytes")
    growth = number(thresholds.max_bundle_growth, "gate.max_bundle_growth")
    megabytes = evidence.challenger.num_bytes / 1e6
    figures: dict[str, Value] = {"megabytes": megabytes}
    passed = 0 < megabytes <= largest
    reason = f"the bundle has {megabytes:,.1f} MB, {'at' if passed else 'but at'} most {largest:,g}"
    if evidence.champion is not None:
        ratio = evidence.challenger.num_bytes / evidence.champion.num_bytes
        figures["times_champion"] = ratio
        reason += f"; {ratio:.2f} times the champion's, {'at' if ratio <= growth else 'but at'} most {growth:g} times"
        passed = passed and ratio <= growth
    return Outcome(passed, figures, largest, reason)


def judge_rehearsal(evidence: Evidence, thresholds: Thresholds) -> Outcome:
    """The bundle, loaded by the real server, answered golden requests with the evaluation's scores."""
    largest = number(thresholds.max_served_difference, "gate.max_served_difference")
    seen = evidence.rehearsal
    if seen.get("error") is not None:
        return Outcome(False, {}, largest, f"the model server did not serve the bundle: {seen['error']}")
    if seen["version"] != evidence.challenger.version:
        raise ValueError(f"the server served {seen['version']}")
    difference, requests = number(seen["largest_difference"], "difference"), number(seen["num_requests"], "requests")
    with_clicks = number(seen["num_with_clicks"], "requests of users with clicks")
    passed = 0 <= difference <= largest and requests > 0
    reason = (
        f"served scores of {requests:,.0f} golden requests, {with_clicks:,.0f} of users with clicks, differ from the "
        f"evaluation's by {difference:.1e}, {'within' if passed else 'above'} {largest:.0e}"
    )
    figures: dict[str, Value] = {"largest_difference": difference, "num_requests": requests}
    return Outcome(passed, figures | {"num_with_clicks": with_clicks}, largest, reason)


def judge_latency(evidence: Evidence, thresholds: Thresholds) -> Outcome:
    """The server answered in time."""
    largest = number(thresholds.max_latency_ms, "gate.max_latency_ms")
    seen = evidence.rehearsal
    if seen.get("error") is not None:
        raise ValueError("the model server did not serve the bundle")
    median_ms, slow_ms = number(seen["latency_ms_median"], "latency"), number(seen["latency_ms_p95"], "latency")
    candidates = number(seen["num_candidates"], "candidates")
    passed = 0 < median_ms <= slow_ms <= largest
    reason = (
        f"95 % of the answers to {candidates:,.0f} candidates came within {slow_ms:.1f} ms (half within "
        f"{median_ms:.1f} ms); {'at' if passed else 'but at'} most {largest:g} ms"
    )
    figures: dict[str, Value] = {"p95_ms": slow_ms, "median_ms": median_ms, "num_candidates": candidates}
    return Outcome(passed, figures, largest, reason)
