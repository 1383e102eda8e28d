"""Every setting, in one frozen tree with a section per stage; TOML on disk.

Defaults are the paper's values where the paper gives one; the comment beside a default says why
where it is another. Library code takes numbers, never this object: the steps unpack it.
"""

import itertools
import json
import tomllib
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from storyrec.errors import ConfigError

Auto = Literal["auto"]
Contrast = Literal["hinge", "infonce"]
Follow = Literal["both", "champion", "canary"]
Positive = Annotated[int, Field(ge=1)]
Scale = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """Frozen, strict and closed: unknown keys are refused by name."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Locations(Section):
    """Where things are. `logs` and `registry` may be `s3://bucket/prefix`; the rest are folders."""

    logs: str = "var/marketplace/logs"
    truth: str = "var/marketplace/truth"  # of a simulated marketplace; only evaluation's oracle line reads it
    work: str = "var/marketplace/work"
    registry: str = "var/marketplace/registry"
    s3_endpoint: str = ""  # empty: the endpoint that boto3's own settings name


class Simulate(Section):
    """The synthetic marketplace."""

    preset: str = "laptop"  # what it is calibrated to: laptop, srd-1, srd-2
    num_users: Annotated[int, Field(ge=10)] | Auto = 5_000  # "auto": as many as the preset has
    num_days: int = Field(10, ge=3)
    first_day: str = "2026-03-01"
    seed: int = 7
    click_model: Literal["independent", "choice"] = "independent"  # "choice": at most one click a list
    scenario: str = "none"  # drift or trouble in the last days; docs/logs.md lists them


class Amazon(Section):
    """The importer of Amazon's review files."""

    negatives_per_click: int = Field(13, ge=1)  # HR@5 ranks one click against 13 non-clicks
    seed: int = 7


class Windows(Section):
    """Which days serve what; "auto" is resolved from the logs when a day's dataset is built."""

    history_days: Positive | Auto = "auto"  # a sequence sees clicks from this many days before the impression's day
    training_days: Positive | Auto = "auto"  # days of impressions to learn from, validation included
    validation_share: float = Field(0.1, gt=0, lt=0.5)  # the last share of the training impressions
    holdout_days: Positive | Auto = "auto"  # days the models are judged on; the last one is the day of the run
    block_hours: Positive | Auto = "auto"  # width of a time block
    user_share: float = Field(1.0, gt=0, le=1)  # of the users, the same every day; others teach and judge nothing


class Rules(Section):
    """Bands of the log rules that look at trailing days."""

    trailing_days: int = Field(7, ge=1)
    min_trailing_days: int = Field(3, ge=1)  # fewer known days: the bands are not judged
    min_trailing_rows: int = Field(200, ge=0)  # a smaller trailing median swings by chance: the bands are not judged
    row_count_band: tuple[float, float] = (0.4, 2.5)  # of the trailing median
    click_rate_band: tuple[float, float] = (0.5, 2.0)  # of the trailing median
    max_quarantined_share: float = Field(0.05, ge=0, le=1)  # more bad rows than this stop the day


class Features(Section):
    """Titles and sequences."""

    vocabulary_size: int = Field(21_128, ge=2)
    min_word_count: int = Field(2, ge=1)
    max_title_words: int = Field(32, ge=1)
    sequence_length: int = Field(20, ge=1)


class Covers(Section):
    """Pictures that a network turns into cover vectors."""

    model: str = ""  # ONNX file or s3://bucket/key, [N, 3, H, W] -> [N, 512]; empty: no picture is read
    picture_folder: str = ""  # local pictures lie below it; empty: below locations.logs
    picture_size: int = Field(224, ge=1)  # pixels a side, where the model leaves it open
    pixel_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of red, green, blue in 0..1: ImageNet's
    pixel_std: tuple[Scale, Scale, Scale] = (0.229, 0.224, 0.225)
    batch_size: int = Field(32, ge=1)
    max_pixels: int = Field(50_000_000, ge=1, le=89_478_485)  # a larger picture is not decoded; Pillow's own limit
    max_megabytes: float = Field(32, gt=0)  # of a picture's file


class Model(Section):
    """Shapes that DUAL and ADEN share. Paper: Sec. III, IV-B."""

    width: int = Field(64, ge=1)
    num_heads: int = Field(4, ge=1)
    num_time_blocks: int = Field(168, ge=1)  # and two more: padding and older
    head_widths: tuple[int, ...] = (256, 128)
    dropout: float = Field(0.1, ge=0, lt=1)
    word_positions: bool = True
    initial_scale: float = Field(1.0, gt=0)  # of fresh extractors; click models that start from them need more


class Training(Section):
    """What both training stages need."""

    seed: int = 7
    learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    batch_size: int = Field(512, ge=2)
    max_epochs: int = Field(10, ge=1)
    max_steps: int = Field(1_000_000, ge=1)  # rounded down to whole epochs, but one at least
    warmup_share: float = Field(0.1, ge=0, lt=1)  # of the planned steps; then the rate falls linearly to 0
    patience: int = Field(2, ge=1)  # epochs without a better validation value before stopping


class Dual(Training):
    """The DUAL stage. Paper: Sec. III-B."""

    # 1e-4 is the authors' value for a million pairs and 115,939 steps; a day's fifteen hundred steps need more
    learning_rate: float = Field(3e-3, gt=0)
    max_epochs: int = Field(20, ge=1)
    max_steps: int = Field(1_500, ge=1)  # of 512 pairs: some 40 seconds on one core
    margin: float = Field(1.0, gt=0)
    squared_distance: bool = False  # True: as the authors' code has it
    contrast: Contrast = "infonce"  # "hinge": the paper's Eq. 5, which matches worse
    adversary: bool = True
    validation_share: float = Field(0.1, gt=0, lt=0.5)


class Aden(Training):
    """The ADEN stage. Paper: Sec. III-C, IV-B."""

    # batches grouped by user share most of their items, so they are large (paper: 128, at 1e-4); the rate grows too
    batch_size: int = Field(1_024, ge=2)
    learning_rate: float = Field(2e-3, gt=0)
    gated: bool = False  # weigh the two domains' users per impression (beyond the paper)
    freeze_extractors: bool = False  # True: keep them as DUAL left them
    max_epochs: int = Field(4, ge=1)  # with the rate falling to 0 over them, more gained nothing on held-out days


class Evaluation(Section):
    """Paper: Sec. IV-C."""

    top_k: int = Field(5, ge=1)
    num_candidates: int = Field(13, ge=1)  # non-clicked stories that one clicked story is ranked against
    max_unknown_words: float = Field(0.1, ge=0, le=1)  # share in titles of the held-out days; above it, a warning
    seed: int = 7


class Margin(Section):
    """What a challenger may lose against the champion, and how sure it must be that it does not lose more."""

    margin: float = Field(ge=0)
    confidence: float = Field(gt=0.5, lt=1)  # of a one-sided bound


class Gate(Section):
    """What a challenger must reach; docs/operations.md says how the margins were chosen."""

    allow_first_model: bool = True
    min_users: int = Field(200, ge=1)
    min_per_user_auc: float = Field(0.52, ge=0, le=1)
    min_ndcg: float = Field(0.22, ge=0, le=1)  # NDCG@top_k; by chance 0.21 among 14 stories
    max_log_loss_ratio: float = Field(1.0, gt=0)  # over the log loss of always saying the click rate
    max_onnx_difference: float = Field(1e-5, gt=0)
    max_served_difference: float = Field(1e-5, gt=0)
    max_latency_ms: float = Field(250.0, gt=0)  # of 95 % of the answers to 500 candidates; the machine may be busy
    max_bundle_megabytes: float = Field(4_000.0, gt=0)
    max_bundle_growth: float = Field(1.5, gt=0)  # times the champion's size
    max_calibration_error: float = Field(0.05, gt=0)
    max_calibration_rise: float = Field(0.02, ge=0)  # over the median of the earlier runs
    max_drift: float = Field(0.25, gt=0)  # population stability index of the scores
    per_user_auc: Margin = Margin(margin=0.005, confidence=0.95)
    ndcg: Margin = Margin(margin=0.01, confidence=0.95)
    log_loss: Margin = Margin(margin=0.005, confidence=0.95)
    calibration: Margin = Margin(margin=0.02, confidence=0.95)
    slices: Margin = Margin(margin=0.03, confidence=0.9)  # per-user AUC
    min_slice_users: int = Field(200, ge=1)  # and half the margin must show, or a slice is reported and not judged
    num_resamples: int = Field(2_000, ge=100)
    seed: int = 7


class Rollout(Section):
    """How a blessed bundle becomes the champion."""

    by_canary: bool = False  # deployments start a canary; False: they switch the champion at once
    shares: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = (0.0, 0.05, 0.25)  # of the users; 0: unseen by them
    min_minutes: float = Field(60.0, ge=0)  # that a share lasts
    min_requests: int = Field(1_000, ge=1)  # of either model, before anything but errors is judged
    max_error_rate: float = Field(0.01, ge=0, le=1)
    max_latency_ratio: float = Field(1.5, gt=0)  # 95th percentile, canary over champion
    max_drift: float = Field(0.25, gt=0)  # population stability index of the scores

    @field_validator("shares")
    @classmethod
    def ascend(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        """Each share is larger than the one before."""
        if not shares or any(after <= before for before, after in itertools.pairwise(shares)):
            raise ValueError("give at least one share, each larger than the one before")
        return shares


class Match(Section):
    """Stories for products."""

    num_stories: int = Field(10, ge=1)


class Serving(Section):
    """The model server."""

    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65_535)
    follow: Follow = "both"  # both: each user hers; canary: the champion without one
    poll_seconds: float = Field(5.0, gt=0)  # how often the champion pointer is looked at
    workers: int = Field(1, ge=1)  # processes that share the port, a thread each that scores
    grpc_port: int = Field(0, ge=0, le=65_535)  # the Open Inference Protocol over gRPC; 0: only HTTP
    cache: str = "var/serving"  # where served bundles are kept
    stories: str = ""  # data root whose stories of days after the training are scored too; empty: none
    answers: str = ""  # folder where answers are logged; empty: nowhere
    answers_seconds: float = Field(30.0, gt=0)  # how long a logged answer waits for others of its file
    store_seconds: float = Field(0.05, gt=0)  # how long a request waits for the feature store
    num_retrieved: int = Field(300, ge=1, le=5_000)  # candidates that /v1/recommend ranks
    max_candidates: int = Field(5_000, ge=1)  # of one request
    max_clicks: int = Field(1_000, ge=1)  # of one domain, where they come with the request
    max_body_kilobytes: int = Field(1_000, ge=1)
    body_seconds: float = Field(5.0, gt=0)  # how long a request's headers may take to arrive, and its body


class FeatureServer(Section):
    """The feature store over HTTP."""

    host: str = "127.0.0.1"
    port: int = Field(6566, ge=1, le=65_535)
    num_workers: int = Field(1, ge=1)


class Airflow(Section):
    """The local Airflow."""

    port: int = Field(8793, ge=1, le=65_535)


class Toleration(Section):
    """A Kubernetes toleration of the GPU nodes."""

    key: str = "nvidia.com/gpu"
    operator: str = "Exists"
    value: str = ""
    effect: str = "NoSchedule"


class Kubeflow(Section):
    """The Kubeflow Pipelines that runs `train_adapt` in the cluster profile."""

    endpoint: str = ""
    namespace: str = "kubeflow"
    experiment: str = "storyrec"
    image: str = "storyrec-training:latest"
    package: str = "build/train_adapt.yaml"  # the compiled pipeline that Airflow submits
    poll_seconds: float = Field(15.0, gt=0)
    timeout_hours: float = Field(12.0, gt=0)
    gpu_node_selector: dict[str, str] = {"nvidia.com/gpu.present": "true"}
    gpu_tolerations: tuple[Toleration, ...] = (Toleration(),)


class Spark(Section):
    """The Spark that makes instances of days that outgrow one machine."""

    master: str = ""  # such as spark://host:7077 or local[2]; empty: this machine alone
    conf: dict[str, str] = {}


class Config(Section):
    """All settings of a run."""

    profile: Literal["local", "cluster"] = "local"
    locations: Locations = Locations()
    simulate: Simulate = Simulate()
    amazon: Amazon = Amazon()
    windows: Windows = Windows()
    spark: Spark = Spark()
    rules: Rules = Rules()
    features: Features = Features()
    covers: Covers = Covers()
    model: Model = Model()
    dual: Dual = Dual()
    aden: Aden = Aden()
    evaluation: Evaluation = Evaluation()
    gate: Gate = Gate()
    rollout: Rollout = Rollout()
    match: Match = Match()
    serving: Serving = Serving()
    feature_server: FeatureServer = FeatureServer()
    airflow: Airflow = Airflow()
    kubeflow: Kubeflow = Kubeflow()


def load_config(path: Path | None) -> Config:
    """Read a TOML file of settings; without a path, all defaults.

    Raises:
        ConfigError: the file is missing or not TOML, or a key is unknown or has a wrong value.
    """
    if path is None:
        return Config()
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"the settings file cannot be read ({error.strerror})",
            where=str(path),
            remedy="name an existing TOML file with --config",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the settings file is not TOML: {error}", where=str(path), remedy="mend the named line"
        ) from error
    # through JSON, so that TOML's arrays are accepted for tuples while types stay strict
    return _validated(settings, where=str(path))


def config_from_json(text: str) -> Config:
    """The inverse of `Config.model_dump_json()`: how a pipeline hands its settings to a step."""

    return _validated(json.loads(text), where="the resolved settings")


def update_config(config: Config, settings: Mapping[str, Mapping[str, Any]]) -> Config:
    """The same settings but for some, by section and name.

    Raises:
        ConfigError: a key is unknown or has a wrong value.
    """
    sections = config.model_dump(mode="json")
    for section, values in settings.items():
        sections[section] = sections.get(section, {}) | dict(values)
    return _validated(sections, where="the settings of an experiment")


def save_config(config: Config, path: Path) -> None:
    """Write every setting, defaults included, as TOML."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(tomli_w.dumps(config.model_dump(mode="json")), encoding="utf-8")
    temporary.replace(path)


def parse_day(text: str) -> date:
    """A partition key `YYYY-MM-DD` as a date.

    Raises:
        ConfigError: the text is no such day.
    """
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            f"'{text}' is not a day", expected="YYYY-MM-DD", remedy="name a partition such as 2026-03-09"
        ) from error


def _validated(settings: dict[str, object], *, where: str) -> Config:

    try:
        return Config.model_validate_json(json.dumps(settings, default=str))
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                problems.append(f"unknown key '{name}'")
            else:
                problems.append(f"'{name}' = {problem['input']!r}: {problem['msg']}")
        raise ConfigError(
            "; ".join(problems),
            expected="the keys and types that `storyrec settings` prints",
            where=where,
            remedy="remove or correct the named keys",
        ) from error
