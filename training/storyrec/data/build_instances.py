"""The instances of a dataset, by this machine or by Spark."""

from datetime import date, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from storyrec.arrays import load_record, save_record
from storyrec.config import Config
from storyrec.data.catalog import Catalog
from storyrec.data.events import IMPRESSIONS, Impressions, load_impressions
from storyrec.data.instances import Instances, split_training
from storyrec.data.parts import Parts
from storyrec.data.spark import PARTS, Rules, open_session, read_instances, write_instances
from storyrec.data.validated import ValidatedLogs
from storyrec.data.windows import ResolvedWindows
from storyrec.features.partitions import work_folder
from storyrec.features.sequences import ClickLog, midnight_us

NOT_SAMPLED, UNKNOWN_STORY, NOT_DRAWN = "user outside the sample", "unknown story", "non-click that was not drawn"


def write_instances_here(
    config: Config, logs: ValidatedLogs, parts: Parts, stories: Catalog, windows: ResolvedWindows, folder: Path
) -> dict[str, int]:
    """Write training, validation and held-out instances; returns how many impressions are in none, by the reason."""
    length, seed = config.features.sequence_length, config.aden.seed
    user_share = config.windows.user_share
    clicks = {domain: load_record(ClickLog, folder, name=f"{domain}_clicks") for domain in ("story", "product")}
    training_start, holdout_start = windows.training_start(logs.day), windows.holdout_start(logs.day)
    end = logs.day + timedelta(days=1)

    def write(name: str, instances: Instances) -> int:
        pointed = instances.with_sequences(
            story_clicks=clicks["story"],
            product_clicks=clicks["product"],
            history_days=windows.history_days,
            length=length,
        )
        save_record(pointed, folder, name=name)
        return len(pointed)

    every = _impressions(logs, parts, training_start, holdout_start)
    impressions = every.of_users(share=user_share)
    not_sampled = len(every) - len(impressions)
    known = Instances.of(impressions, stories=stories)
    unknown = len(impressions) - len(known)
    training, validation = split_training(known, validation_share=windows.validation_share, seed=seed)
    not_drawn = len(known) - write("train", training) - write("validation", validation)
    del training, validation, known, impressions
    every = _impressions(logs, parts, holdout_start, end)
    impressions = every.of_users(share=user_share)
    not_sampled += len(every) - len(impressions)
    unknown += len(impressions) - write("holdout", Instances.of(impressions, stories=stories))
    return {NOT_SAMPLED: not_sampled, UNKNOWN_STORY: unknown, NOT_DRAWN: not_drawn}


def write_instances_by_spark(
    config: Config, logs: ValidatedLogs, stories: Catalog, windows: ResolvedWindows, folder: Path
) -> dict[str, int]:
    """The same, by Spark."""
    history_start, holdout_start = windows.history_start(logs.day), windows.holdout_start(logs.day)
    clicks = {domain: load_record(ClickLog, folder, name=f"{domain}_clicks") for domain in ("story", "product")}
    work = work_folder(config.locations.work)
    files = {
        table: [str(work / key) for d, keys in logs.files[table].items() if d >= history_start for key in keys]
        for table in ("impressions", "product_clicks")
    }
    rules = Rules(
        history_us=midnight_us(history_start),
        training_us=midnight_us(windows.training_start(logs.day)),
        holdout_us=midnight_us(holdout_start),
        end_us=midnight_us(logs.day + timedelta(days=1)),
        history_days=windows.history_days,
        length=config.features.sequence_length,
        validation_share=windows.validation_share,
        seed=config.aden.seed,
        user_share=config.windows.user_share,
    )
    with (
        TemporaryDirectory(dir=work, prefix=".spark-") as shared,
        open_session(config.spark.master, conf=config.spark.conf) as session,
    ):
        not_sampled, unknown, not_drawn = write_instances(
            session, **files, story_ids=stories.item_ids_N[1:], rules=rules, out=shared
        )
        for name in PARTS:
            instances = read_instances(Path(shared), name, stories=stories, clicks=clicks)
            save_record(instances, folder, name=name)
            not_drawn -= len(instances) if name != "holdout" else 0
    return {NOT_SAMPLED: not_sampled, UNKNOWN_STORY: unknown, NOT_DRAWN: not_drawn}


def _impressions(logs: ValidatedLogs, parts: Parts, start: date, end: date) -> Impressions:
    """The impressions of the days from `start` to the one before `end`."""
    files = logs.files["impressions"]
    found = [
        load_impressions(part) for part in parts.make(IMPRESSIONS, files, days=[d for d in files if start <= d < end])
    ]
    return Impressions.concat([some.between(midnight_us(start), midnight_us(end)) for some in found])
