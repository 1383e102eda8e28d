"""What the server counts, for Prometheus.

With several workers the environment variable PROMETHEUS_MULTIPROC_DIR names a folder that they share, and the
figures are those of all workers together.
"""

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

HOURS = 3_600.0

REQUESTS = Counter("storyrec_requests", "Requests answered.", ["route", "version", "status"])
SECONDS = Histogram(
    "storyrec_request_seconds",
    "From a request's first byte to its answer.",
    ["route"],
    buckets=(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0),
)
CANDIDATES = Histogram(
    "storyrec_candidates", "Candidates of a request.", buckets=(1, 10, 50, 100, 200, 300, 500, 1_000, 2_000, 5_000)
)
UNKNOWN = Counter("storyrec_unknown_candidates", "Candidates that the model does not know.")
APPENDED = Counter("storyrec_appended_candidates", "Candidates that were published after the model was trained.")
FALLBACKS = Counter("storyrec_fallbacks", "Requests answered without what they should have had.", ["reason"])
SEQUENCE_AGE = Histogram(
    "storyrec_sequence_age_seconds",
    "From a user's newest click in the feature store to the request.",
    buckets=(60.0, HOURS, 6 * HOURS, 24 * HOURS, 30 * HOURS, 48 * HOURS, 7 * 24 * HOURS, 30 * 24 * HOURS),
)
BUNDLE_LOADS = Counter("storyrec_bundle_loads", "Bundles that serve now, or were refused.", ["outcome"])
CANARY_SHARE = Gauge(
    "storyrec_canary_share", "Share of the users whom the canary answers.", multiprocess_mode="mostrecent"
)
FAILURES = Counter("storyrec_failures", "Requests that a model could not answer.", ["role"])
CANARY_WITHDRAWN = Counter("storyrec_canary_withdrawn", "Canaries that failed in this server's traffic.")
SHADOWS_DROPPED = Counter(
    "storyrec_shadows_dropped", "Requests that the shadow did not score, because too many waited."
)
ANSWERS_LOGGED = Counter("storyrec_answers_logged", "Answers written to the answer log.")
ANSWERS_DROPPED = Counter("storyrec_answers_dropped", "Answers that the answer log had no room for.")


def exposition() -> bytes:
    """All figures in Prometheus' text format."""
    # not by the environment: Feast sets the variable when it is imported, too late for what counts here
    if values.ValueClass is values.MutexValue:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
