"""Spark against this machine: the same instances of the same logs."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builders import FIRST_DAY, planted_config, write_partition, write_report, write_validated
from storyrec.config import Config, update_config
from storyrec.data.build import build_dataset
from storyrec.data.spark import open_session
from storyrec.errors import EXIT_CODE, DataError, PlatformError
from storyrec.features.sequences import midnight_us

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

LAST_DAY = FIRST_DAY + timedelta(days=2)
CONF = {"spark.sql.shuffle.partitions": "2", "spark.default.parallelism": "2", "spark.driver.bindAddress": "127.0.0.1"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("pyspark") is None, reason="PySpark is not on the path: make test-slow sets it up"
    ),
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java"),
]


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator["SparkSession"]:
    """One session for all tests: the steps find it running."""
    with open_session("local[2]", conf=CONF) as session:
        yield session


@pytest.fixture(autouse=True)
def _keep_running(session: "SparkSession", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(session), "stop", lambda self: None)


def on_spark(config: Config) -> Config:
    return update_config(config, {"spark": {"master": "local[2]", "conf": CONF}})


def assert_same(config: Config, out: Path) -> None:
    here = build_dataset(config, day=LAST_DAY, out=out / "here")
    there = build_dataset(on_spark(config), day=LAST_DAY, out=out / "there")
    assert there.left_out == here.left_out
    assert there.digest == here.digest


@pytest.mark.parametrize("user_share", [1.0, 0.5])
def test_a_marketplace_gives_the_same_dataset(tmp_path: Path, user_share: float) -> None:
    write_validated(tmp_path, seed=3, num_users=40, num_days=3)
    assert_same(planted_config(tmp_path, history_days=1, user_share=user_share), tmp_path)


def outcome(config: Config, out: Path) -> tuple[str, object]:
    """The dataset's digest and what it leaves out, or what was found instead of one."""
    try:
        made = build_dataset(config, day=LAST_DAY, out=out)
    except DataError as error:
        return "refused", error.found
    return made.digest, made.left_out


EVENTS = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 2), st.integers(0, 3), st.integers(1, 3)), max_size=25)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    shown=EVENTS, labels=st.lists(st.booleans(), min_size=25, max_size=25), clicks=EVENTS, share=st.floats(0.1, 0.45)
)
def test_any_logs_give_the_same_dataset(
    tmp_path_factory: pytest.TempPathFactory,
    shown: list[tuple[int, int, int, int]],
    labels: list[bool],
    clicks: list[tuple[int, int, int, int]],
    share: float,
) -> None:
    """Few users, times and items, so that ties, repeated rows, unknown stories and midnights are common."""
    root = tmp_path_factory.mktemp("drawn")
    write_validated(root, num_users=3, num_days=3, items_per_day=2, impressions_per_user_day=2)
    times = [0, 1, 2, 86_399_999_999]
    for day in range(3):
        start_us = midnight_us(FIRST_DAY + timedelta(days=day))
        own = [
            {"user_id": user, "story_id": 998 + story, "shown_at": start_us + times[time], "clicked": label}
            for (user, at, time, story), label in zip(shown, labels, strict=False)
            if at == day
        ]
        # both classes and two times are there in any case
        own += [
            {"user_id": 1, "story_id": 1_000, "shown_at": start_us + us, "clicked": us < 9} for us in (7, 8, 9, 10, 11)
        ]
        write_partition(root, "impressions", FIRST_DAY + timedelta(days=day), own)
        rows = [
            {"user_id": user, "product_id": 500_000 + item, "clicked_at": start_us + times[time]}
            for user, at, time, item in clicks
            if at == day
        ]
        write_partition(root, "product_clicks", FIRST_DAY + timedelta(days=day), rows)
        write_report(root, FIRST_DAY + timedelta(days=day))
    config = update_config(
        planted_config(root, history_days=1, training_days=2, holdout_days=1),
        {"windows": {"validation_share": share}, "features": {"sequence_length": 3}},
    )
    assert outcome(on_spark(config), root / "there") == outcome(config, root / "here")


def test_training_days_of_one_time_are_refused(tmp_path: Path) -> None:
    write_validated(tmp_path, num_users=4, num_days=3)
    for day in range(2):
        path = tmp_path / f"validated/impressions/dt={FIRST_DAY + timedelta(days=day)}/part-0.parquet"
        rows = pq.read_table(path, partitioning=None)
        one = pa.array(np.full(len(rows), midnight_us(FIRST_DAY))).cast(rows.schema.field("shown_at").type)
        write_partition(tmp_path, "impressions", FIRST_DAY, rows.set_column(2, "shown_at", one))
        if day:
            shutil.rmtree(path.parent)
    config = on_spark(planted_config(tmp_path, training_days=2, holdout_days=1))
    with pytest.raises(DataError, match=r"1 distinct time"):
        build_dataset(config, day=LAST_DAY, out=tmp_path / "dataset")
    assert not list(tmp_path.glob(".spark-*"))


@pytest.mark.parametrize(
    ("master", "java_home", "said"),
    [
        ("spark://127.0.0.1", None, "Invalid master URL"),
        ("local[2]", "nowhere", "Java gateway process exited"),
    ],
)
def test_a_spark_that_does_not_start_is_a_clear_error(
    tmp_path: Path, master: str, java_home: str | None, said: str
) -> None:
    """In a process of its own, where no session runs."""
    write_validated(tmp_path, num_users=4, num_days=3)
    config = update_config(planted_config(tmp_path), {"spark": {"master": master}})
    (tmp_path / "my.toml").write_text(tomli_w.dumps(config.model_dump(mode="json")))
    command = ["build-dataset", f"--day={LAST_DAY}", f"--out={tmp_path}/dataset", f"--config={tmp_path}/my.toml"]
    done = subprocess.run(
        [sys.executable, "-m", "storyrec.cli", *command],
        env=os.environ | ({"JAVA_HOME": str(tmp_path / java_home)} if java_home else {}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == EXIT_CODE
    assert said in done.stderr.split("storyrec: Spark does not start: ")[1].splitlines()[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "dataset").exists()
    assert not list(tmp_path.glob(".spark-*"))


def test_a_spark_that_fails_midway_is_a_clear_error(session: "SparkSession", tmp_path: Path) -> None:
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(PlatformError, match="Spark failed midway"), open_session("local[2]", conf=CONF) as session:
        session.read.parquet(str(tmp_path / "cut.parquet")).count()
