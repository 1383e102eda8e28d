"""What the gate asks for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Margin:
    """How much of a figure a challenger may lose, and how sure it must be that it does not lose more.

    Attributes:
        margin: in the figure's unit.
        confidence: of the one-sided bound, such as 0.95.
    """

    margin: float | None
    confidence: float | None


@dataclass(frozen=True)
class Thresholds:
    """What a challenger must reach; a rule whose threshold is None does not hold.

    Attributes:
        allow_first_model: whether a challenger may pass without a champion to compare with.
        min_users: scorable users.
        min_per_user_auc, min_ndcg: absolute floors.
        max_log_loss_ratio: log loss over that of always saying the click rate.
        max_onnx_difference: between the packed ranker and torch, probability.
        max_served_difference: between the model server's answers and the evaluation's scores, probability.
        max_latency_ms: of 95 % of the server's answers.
        max_bundle_megabytes: of the bundle's files.
        max_bundle_growth: size over the champion's.
        max_calibration_error: expected calibration error, probability.
        max_calibration_rise: of that error over the median of the earlier runs.
        max_drift: population stability index of the scores against the champion's.
        per_user_auc, ndcg, log_loss, calibration, slices: against the champion; slices in per-user AUC.
        min_slice_users: scorable users; a slice with fewer is reported and not judged.
        num_resamples, seed: of the bootstrap.
    """

    allow_first_model: bool | None
    min_users: int | None
    min_per_user_auc: float | None
    min_ndcg: float | None
    max_log_loss_ratio: float | None
    max_onnx_difference: float | None
    max_served_difference: float | None
    max_latency_ms: float | None
    max_bundle_megabytes: float | None
    max_bundle_growth: float | None
    max_calibration_error: float | None
    max_calibration_rise: float | None
    max_drift: float | None
    per_user_auc: Margin
    ndcg: Margin
    log_loss: Margin
    calibration: Margin
    slices: Margin
    min_slice_users: int | None
    num_resamples: int | None
    seed: int | None
