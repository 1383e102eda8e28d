"""The analysis of whole marketplaces: what it agrees with, what may be missing, what it writes and refuses."""

import io
import json
import re
import shutil
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from builders import planted_config, write_validated
from storyrec.analysis.analyze import Document, analyze
from storyrec.analysis.plots import MIN_SHOWN, plot_rates
from storyrec.analysis.report import (
    JSON,
    MARKDOWN,
    PAGE,
    markdown_analysis,
    print_analysis,
    render_analysis,
    write_analysis,
)
from storyrec.config import Config, Locations
from storyrec.data.build import build_dataset
from storyrec.errors import DataError, MissingPartition, SchemaMismatch
from storyrec.logs.simulate import simulate
from storyrec.logs.validate import validate_logs


def analyze_with(data: Path, config: Config) -> Document:
    return analyze(
        data,
        history_days=config.windows.history_days,
        sequence_length=config.features.sequence_length,
        vocabulary_size=config.features.vocabulary_size,
        min_word_count=config.features.min_word_count,
        max_title_words=config.features.max_title_words,
        seed=config.aden.seed,
    )


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated marketplace with its faults; tests copy it before they change it."""
    root = tmp_path_factory.mktemp("market")
    simulate(
        out_logs=root / "logs", out_truth=root / "truth", num_users=60, num_days=4, first_day=date(2026, 3, 1), seed=7
    )
    return root / "logs"


def rows_of(data: Path, table: str) -> int:
    return sum(pq.read_metadata(path).num_rows for path in (data / table).rglob("*.parquet"))


def test_it_agrees_with_the_dataset_that_models_learn_from(tmp_path: Path) -> None:
    day = write_validated(tmp_path)
    config = planted_config(tmp_path, history_days=2, holdout_days=1, training_days=1)
    data = build_dataset(config, day=day, out=tmp_path / "dataset")
    found = analyze_with(tmp_path / "validated", config)
    holdout = data.holdout
    test = found["table_1"]["here"]["test"]
    bounds = [holdout.user_ids_B, holdout.story_start_B, holdout.story_stop_B]
    bounds += [holdout.product_start_B, holdout.product_stop_B]
    assert test["instances"] == len(holdout)
    assert test["clicked"] == holdout.clicked_B.sum()
    assert test["sequences"] == len(set(zip(*(bound_B.tolist() for bound_B in bounds), strict=True)))
    assert found["titles"]["vocabulary_size"] == data.vocabulary.size
    assert sum(found["table_2"]["here"]) == len(data.pairs_M2) + len(data.holdout_pairs_M2)


def test_a_simulated_marketplace_with_its_faults(logs: Path, tmp_path: Path) -> None:
    found = analyze_with(logs, Config())
    faults = json.loads((logs / "_marketplace.json").read_text())["faults"]["impressions"]
    facts = {fact["what"]: fact for name in ("duplicates", "coverage") for fact in found[name]}
    usable = facts["impressions with ids, and a time inside their day"]
    assert usable["of"] == rows_of(logs, "impressions")
    assert usable["of"] - usable["count"] == faults["outside_day"] + faults["no_user"]
    known = facts["impressions of an item that the catalog knows"]
    assert known["of"] - known["count"] == faults["unknown_item"]
    assert facts["impressions that repeat a row"]["count"] == faults["duplicate"]
    write_analysis(found, tmp_path / "out")
    page = (tmp_path / "out" / PAGE).read_text()
    assert json.loads((tmp_path / "out" / JSON).read_text()) == json.loads(json.dumps(found))
    assert page.count("<svg") == 8
    assert "5,083,833" in page
    assert f"{found['table_1']['here']['test']['instances']:,}" in page
    console = Console(width=160, record=True, file=io.StringIO())
    print_analysis(found, console=console)
    printed = console.export_text()
    for table in ("Table I", "Table III, sequences", "Click rate by hour, UTC", "Click rate by sequence length"):
        assert f"{table} " in printed
        assert f"| {table} |" in (tmp_path / "out" / MARKDOWN).read_text()


def test_rates_and_lengths_are_printed_as_numbers(logs: Path) -> None:
    found = analyze_with(logs, Config())
    table = {line.split(" | ")[0]: line for line in markdown_analysis(found).splitlines()}
    rates = found["click_rates"]
    hour = rates["hour"][-1]
    assert table[f"| {hour['value']}"].startswith(
        f"| {hour['value']} | {hour['shown']:,} | {100 * hour['click_rate']:.2f} % |"
    )
    assert sum(rate["shown"] for rate in rates["hour"]) == sum(rate["shown"] for rate in rates["day"])
    longest = rates["product_length"][-1]
    assert table["| 20"].endswith(f"| {longest['shown']:,} | {100 * longest['click_rate']:.2f} % |")
    words = [
        np.repeat(range(len(counts)), counts)
        for counts in (found["titles"][name]["lengths"] for name in ("story", "product"))
    ]
    quantiles = [
        " / ".join(f"{np.quantile(one, share, method='inverted_cdf')}" for share in (0.05, 0.5, 0.95)) for one in words
    ]
    assert table["| words in a title, 5, 50 and 95 %"].endswith(f"| {quantiles[0]} | {quantiles[1]} |")


def test_rates_of_a_few_impressions_are_not_drawn() -> None:
    many = [{"value": value, "shown": MIN_SHOWN, "clicked": 3, "click_rate": 0.1} for value in range(5)]
    few = {"value": 5, "shown": MIN_SHOWN - 1, "clicked": MIN_SHOWN - 1, "click_rate": 1.0}
    assert plot_rates({"all": [*many, few]}, xlabel="hour") == plot_rates({"all": many}, xlabel="hour")
    assert plot_rates({"all": [few]}, xlabel="hour") is None


def test_what_is_missing_is_none(tmp_path: Path) -> None:
    write_validated(tmp_path, covers=False, day_resolution=True)
    data = tmp_path / "validated"
    for path in (data / "stories").rglob("*.parquet"):
        stories = pq.read_table(path)
        column = stories.schema.get_field_index("mounted_product_ids")
        empty = pa.array([[]] * len(stories), stories.schema.field(column).type)
        stories = stories.set_column(column, stories.schema.field(column), empty)
        column = stories.schema.get_field_index("source")
        none = pa.nulls(len(stories), pa.string())
        pq.write_table(stories.set_column(column, stories.schema.field(column), none), path)
    found = analyze_with(data, Config())
    assert found["click_rates"]["hour"] is None
    assert found["data"]["history_days"] == 5
    assert [source["source"] for source in found["figure_1"]] == ["none"]
    assert found["table_2"]["here"] == (0, 0, 0, 0, 0)
    assert found["table_3"]["here"]["story_categories"] == 0
    assert found["figure_4"]["categories"] == []
    facts = {fact["what"]: fact for fact in found["coverage"]}
    assert facts["rows of products with a cover"]["count"] == 0
    assert facts["mounted products that the catalog knows"]["share"] is None
    assert render_analysis(found).count('<p class="soft">none</p>') == 3  # similarity, categories, hours


def test_a_thin_last_day_is_left_out(logs: Path, tmp_path: Path) -> None:
    data = shutil.copytree(logs, tmp_path / "logs")
    late = data / "impressions" / "dt=2026-03-05" / "part-0.parquet"
    late.parent.mkdir()
    pq.write_table(pq.read_table(next((data / "impressions").rglob("dt=2026-03-04/*.parquet"))).slice(0, 3), late)
    found = analyze_with(data, Config())
    assert (found["data"]["test_day"], found["data"]["num_days_left_out"]) == ("2026-03-04", 1)
    assert found["table_1"] == analyze_with(logs, Config())["table_1"]


def test_bad_places_are_refused(logs: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingPartition, match="no partition of products, stories, impressions, product_clicks"):
        analyze_with(tmp_path, Config())
    data = shutil.copytree(logs, tmp_path / "logs")
    shutil.rmtree(data / "product_clicks")
    with pytest.raises(MissingPartition, match="no partition of product_clicks"):
        analyze_with(data, Config())
    data = shutil.copytree(logs, tmp_path / "broken")
    broken = next((data / "stories").rglob("*.parquet"))
    content = broken.read_bytes()
    broken.write_bytes(content[:100])
    with pytest.raises(DataError, match="no readable Parquet file"):
        analyze_with(data, Config())
    broken.write_bytes(content)
    pq.write_table(pq.read_table(broken).drop_columns(["source"]), broken)
    with pytest.raises(SchemaMismatch, match="column 'source' is missing"):
        analyze_with(data, Config())


def test_a_missing_file_of_a_day_is_refused(logs: Path, tmp_path: Path) -> None:
    data = shutil.copytree(logs, tmp_path / "logs")
    day = data / "impressions" / "dt=2026-03-03"
    (day / "part-0.parquet").rename(day / "part-1.parquet")
    with pytest.raises(DataError, match=r"1 of the day's files are missing: part-0\.parquet") as caught:
        analyze_with(data, Config())
    assert caught.value.where == str(day)


@pytest.mark.parametrize(
    ("column", "first", "kind", "said"),
    [
        ("user_id", 2**63, pa.uint64(), "has type uint64 and cannot be cast without loss (Integer value"),
        ("story_id", Decimal(2**63), pa.decimal128(20), f"has type decimal128(20, 0), such as '{2**63}'"),
        ("story_id", 1.5, pa.float64(), "has type double, such as '1.5'"),
        ("shown_at", 10**18 + 1, pa.timestamp("ns", "UTC"), "has type timestamp[ns, tz=UTC] and cannot be cast"),
    ],
)
def test_values_that_the_contract_does_not_hold_are_refused_as_validation_does(
    logs: Path, tmp_path: Path, column: str, first: object, kind: pa.DataType, said: str
) -> None:
    data = shutil.copytree(logs, tmp_path / "logs")
    path = data / "impressions" / "dt=2026-03-03" / "part-0.parquet"
    rows = pq.read_table(path, partitioning=None)
    values = pa.array([first, *[type(first)(1)] * (len(rows) - 1)], kind)
    pq.write_table(rows.set_column(rows.schema.get_field_index(column), column, values), path)
    config = Config(locations=Locations(logs=str(data), work=str(tmp_path / "work")))
    refusals = []
    for look in (partial(analyze_with, data, Config()), partial(validate_logs, config, day=date(2026, 3, 3))):
        with pytest.raises(SchemaMismatch, match=re.escape(f"column '{column}' {said}")) as caught:
            look()
        refusals.append(str(caught.value))
    assert refusals[0] == refusals[1]
    assert str(path) in refusals[0]


def not_text(path: Path) -> None:
    """Write titles that are no UTF-8."""
    stories = pq.read_table(path, partitioning=None)
    said = pa.array([b"\xff\xfe tea"] * len(stories))
    titles = pa.Array.from_buffers(pa.string(), len(said), said.buffers())
    pq.write_table(stories.set_column(stories.schema.get_field_index("title"), "title", titles), path)


def damaged(path: Path) -> None:
    """Overwrite the head of every page of the titles: what it is of, and how long."""
    column = pq.read_metadata(path).row_group(0)
    place = next(column.column(i) for i in range(column.num_columns) if column.column(i).path_in_schema == "title")
    content = bytearray(path.read_bytes())
    start = place.dictionary_page_offset or place.data_page_offset
    content[start : start + place.total_compressed_size] = b"\x0e" * place.total_compressed_size
    path.write_bytes(content)


@pytest.mark.parametrize("spoil", [not_text, damaged])
def test_damage_behind_a_files_footer_is_refused(logs: Path, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    data = shutil.copytree(logs, tmp_path / "logs")
    spoil(data / "stories" / "dt=2026-03-03" / "part-0.parquet")
    with pytest.raises(DataError, match="a file of the logs is damaged") as caught:
        analyze_with(data, Config())
    assert caught.value.where == str(data)
