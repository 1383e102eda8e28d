"""Instances by Spark, for days that outgrow one machine: row by row those that `instances` makes of the same files.

Spark filters the impressions, finds the place of each sequence among its user's clicks, and draws the non-clicks;
what comes back is a Parquet row for each instance. Paper: Sec. III and IV-A.

Suffix: G = (day, user) groups.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq

from storyrec.data.catalog import Catalog
from storyrec.data.instances import Instances, draw_passed, require_both_classes, require_two_times
from storyrec.data.sampling import sampled_in_sql
from storyrec.errors import PlatformError
from storyrec.features.sequences import DAY_US, ClickLog

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Int64s = npt.NDArray[np.int64]

SECOND_US = 1_000_000
PARTS = ("train", "validation", "holdout")
COLUMNS = (
    *("user_id", "story_id", "us", "clicked"),
    *("story_start", "story_stop", "product_start", "product_stop"),
)
CONF: Mapping[str, str] = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.ui.enabled": "false",
}

_PLACES = """
WITH events AS (
    SELECT user_id, us, day, 0 AS kind, story_id, clicked FROM {shown}
    UNION ALL SELECT user_id, us, day, 1, NULL, NULL FROM {story_clicks}
    UNION ALL SELECT user_id, us, day, 2, NULL, NULL FROM {product_clicks}),
placed AS (
    SELECT *,
        count_if(kind = 1) OVER earlier AS story_stop, count_if(kind = 1) OVER too_old AS story_old,
        count_if(kind = 2) OVER earlier AS product_stop, count_if(kind = 2) OVER too_old AS product_old
    FROM events
    WINDOW
        -- an impression comes before the clicks of its own time: what is counted lies strictly before it
        earlier AS (PARTITION BY user_id ORDER BY us, kind ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW),
        too_old AS (PARTITION BY user_id ORDER BY day RANGE BETWEEN UNBOUNDED PRECEDING AND {too_old_days} PRECEDING))
SELECT user_id, story_id, us, day, clicked,
    greatest(story_stop - {length}, story_old) AS story_start, story_stop,
    greatest(product_stop - {length}, product_old) AS product_start, product_stop
FROM placed WHERE kind = 0
"""


@dataclass(frozen=True)
class Rules:
    """What makes an impression an instance; see `instances`.

    Attributes:
        history_us, training_us, holdout_us, end_us: where the history, the training days and the held-out days begin,
            and where the latter end, epoch microseconds UTC.
        history_days: sequences begin at midnight this many days before the impression's day.
        length: the most clicks of a sequence.
        validation_share: about how much of the training days validates: their last impressions.
        seed: of the draw of training's non-clicks.
        user_share: of the users; the others' events are left out.
    """

    history_us: int
    training_us: int
    holdout_us: int
    end_us: int
    history_days: int
    length: int
    validation_share: float
    seed: int
    user_share: float


def write_instances(
    session: "SparkSession",
    *,
    impressions: Sequence[str],
    product_clicks: Sequence[str],
    story_ids: Int64s,
    rules: Rules,
    out: str,
) -> tuple[int, int, int]:
    """Write `part=train`, `part=validation` and `part=holdout`, files in order of user and time.

    Columns: user_id, story_id, us, clicked, and the bounds of both sequences, counted from the user's first click
    since `history_us`.

    Args:
        session: Spark's.
        impressions, product_clicks: Parquet files of the validated days since `history_us`.
        story_ids: of the catalog; impressions of other stories are left out.
        rules: what becomes an instance.
        out: a folder that Spark's workers and the reader share.

    Returns:
        How many impressions were left out for their user, how many for their story, and how many the training days
        have without them.

    Raises:
        DataError: the training days hold one time or one class only.
    """
    every = _events(session, impressions, time="shown_at", columns="story_id, clicked", since_us=rules.history_us)
    clicks = _events(session, product_clicks, time="clicked_at", columns="product_id", since_us=rules.history_us)
    sample = sampled_in_sql(share=rules.user_share)
    shown_to_all = every.where(f"us >= {rules.training_us} AND us < {rules.end_us}")
    shown = shown_to_all.where(sample)
    stories = session.createDataFrame(pd.DataFrame({"story_id": story_ids}))
    known = shown.join(stories, "story_id", "left_semi")
    num_to_all, num_shown = shown_to_all.count(), shown.count()
    unknown = num_shown - known.count()
    placed = session.sql(
        _PLACES.replace("{too_old_days}", str(rules.history_days + 1)).replace("{length}", str(rules.length)),
        shown=known,
        story_clicks=every.where("clicked").where(sample),
        product_clicks=clicks.where(sample),
    ).cache()
    cut_us = _cut(placed.where(f"us < {rules.holdout_us}"), last_share=rules.validation_share)
    parts = {
        "train": _balance(placed.where(f"us < {cut_us}"), seed=rules.seed),
        "validation": placed.where(f"us >= {cut_us} AND us < {rules.holdout_us}"),
        "holdout": placed.where(f"us >= {rules.holdout_us}"),
    }
    for name, rows in parts.items():
        ordered = rows.repartitionByRange("user_id").sortWithinPartitions("user_id", "us", "story_id", "clicked")
        ordered.write.mode("overwrite").parquet(f"{out}/part={name}")
    num_training = placed.where(f"us < {rules.holdout_us}").count()
    placed.unpersist()
    return int(num_to_all - num_shown), int(unknown), int(num_training)


def read_instances(out: Path, part: str, *, stories: Catalog, clicks: Mapping[str, ClickLog]) -> Instances:
    """The instances that `write_instances` wrote, pointing into the whole click logs.

    Args:
        out: the folder.
        part: "train", "validation" or "holdout".
        stories: the catalog.
        clicks: `story` and `product`: all clicks since the history begins.
    """
    tables = [pq.read_table(path, partitioning=None) for path in sorted((out / f"part={part}").glob("part-*.parquet"))]
    columns = {
        name: np.concatenate([np.empty(0, np.int64), *(np.asarray(table[name].to_numpy()) for table in tables)])
        for name in COLUMNS
    }
    first = {domain: log.first(columns["user_id"]) for domain, log in clicks.items()}
    return Instances(
        user_ids_B=columns["user_id"].astype(np.int64),
        story_rows_B=stories.rows(columns["story_id"]),
        shown_us_B=columns["us"].astype(np.int64),
        clicked_B=columns["clicked"].astype(bool),
        **{
            f"{domain}_{bound}_B": first[domain] + columns[f"{domain}_{bound}"].astype(np.int64)
            for domain in clicks
            for bound in ("start", "stop")
        },
    )


@contextmanager
def open_session(master: str, *, conf: Mapping[str, str]) -> Iterator["SparkSession"]:
    """A Spark session in UTC.

    Args:
        master: such as `local[2]` or `spark://host:7077`.
        conf: further settings of Spark's own.

    Raises:
        PlatformError: PySpark or Java is not there, the master does not answer, or Spark fails midway.
    """
    try:
        from py4j.protocol import Py4JError
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise _no_spark(master, error) from error
    builder = SparkSession.builder.appName("storyrec").master(master)
    for key, value in {**CONF, **conf}.items():
        builder = builder.config(key, value)
    try:
        session = builder.getOrCreate()
    except (PySparkException, Py4JError, OSError) as error:
        raise _no_spark(master, error) from error
    try:
        yield session
    except (PySparkException, Py4JError) as error:
        raise PlatformError(
            f"Spark failed midway: {_said(error)}",
            where=f"spark.master = {master}",
            remedy="see what Spark itself printed, mend it, then run the same command again",
        ) from error
    finally:
        session.stop()


def _no_spark(master: str, error: Exception) -> PlatformError:
    return PlatformError(
        f"Spark does not start: {_said(error)}",
        expected="PySpark (the extra `spark`), Java 17 or later, and a master that answers",
        where=f"spark.master = {master}",
        remedy="install them, correct the address, or leave spark.master empty to work on this machine alone",
    )


def _said(error: Exception) -> str:
    """Without the Java stack; what the gateway says of Java's error stands in its second line."""
    return " ".join(str(error).splitlines()[:2])


def _events(session: "SparkSession", files: Sequence[str], *, time: str, columns: str, since_us: int) -> "DataFrame":
    rows = session.read.parquet(*files).selectExpr(
        "user_id", f"unix_micros({time}) AS us", f"unix_micros({time}) DIV {DAY_US} AS day", *columns.split(", ")
    )
    return rows.where(f"us >= {since_us}")


def _cut(training: "DataFrame", *, last_share: float) -> int:
    """Where validation begins; see `split_by_time`. Times are counted by the second, then exactly around the cut."""
    seconds = training.groupBy((training.us / SECOND_US).cast("bigint").alias("second")).count().toPandas()
    seconds = seconds.sort_values("second")
    until = seconds["count"].cumsum().to_numpy()
    total = int(until[-1]) if len(until) else 0
    target = (1 - last_share) * total
    place = min(int(np.searchsorted(until, target)), len(until) - 1) if total else 0
    near = seconds["second"].to_numpy()[place : place + 2]
    low, high = (int(near[0]) * SECOND_US, (int(near[-1]) + 1) * SECOND_US) if total else (0, 0)
    times = training.where(f"us >= {low} AND us < {high}").groupBy("us").count().toPandas().sort_values("us")
    before = int(until[place - 1]) if place else 0
    earlier = before + times["count"].cumsum().to_numpy() - times["count"].to_numpy()
    inner = earlier > 0
    require_two_times(total, num_times=int(inner.sum()) + 1)
    return int(times["us"].to_numpy()[inner][np.argmin(np.abs(earlier[inner] - target))])


def _balance(training: "DataFrame", *, seed: int) -> "DataFrame":
    """Every click and as many non-clicks of the day; see `balance`."""
    from pyspark.sql.functions import expr

    groups = (
        training.groupBy("day", "user_id")
        .agg(expr("count_if(clicked)").alias("num_clicked"), expr("count_if(NOT clicked)").alias("num_passed"))
        .toPandas()
        .sort_values(["day", "user_id"])
    )
    drawn = []
    for day in groups["day"].unique().tolist():
        own = groups[groups["day"] == day]
        ends_G = own["num_passed"].cumsum().to_numpy()
        ranks = draw_passed(int(own["num_clicked"].sum()), int(own["num_passed"].sum()), seed=seed, day=day)
        users = np.searchsorted(ends_G, ranks, side="right")
        starts_G = ends_G - own["num_passed"].to_numpy()
        place = ranks - starts_G[users]
        drawn.append(pd.DataFrame({"day": day, "user_id": own["user_id"].to_numpy()[users], "place": place}))
    num_drawn = sum(map(len, drawn))
    num_clicked = int(groups["num_clicked"].sum())
    require_both_classes(num_clicked, num_clicked + num_drawn)
    passed = training.where("NOT clicked").selectExpr(
        "*", "row_number() OVER (PARTITION BY day, user_id ORDER BY us, story_id) - 1 AS place"
    )
    places = training.sparkSession.createDataFrame(pd.concat(drawn).astype(np.int64))
    return training.where("clicked").unionByName(passed.join(places, ["day", "user_id", "place"]).drop("place"))
