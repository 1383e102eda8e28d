"""The importer of the published files: what comes out is what the rows say, and what goes wrong is named."""

import gzip
import json
from codecs import BOM_UTF8
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from srd_source import PIECES, Shown, course, cover, pair, second, title, write, write_vocabulary
from storyrec import cli
from storyrec.config import Config
from storyrec.data.build import build_dataset
from storyrec.errors import EXIT_CODE, DataError
from storyrec.features.titles import train_vocabulary
from storyrec.logs.srd import MARKER, import_srd
from storyrec.logs.srd_files import CONTINUATION, UNKNOWN_WORD, read_words
from storyrec.logs.validate import catch_up, validate_logs
from storyrec.schema import TABLES

DAYS = date(2019, 11, 27), date(2019, 11, 28)
REAL = Path(__file__).parents[3] / "shared" / "data"


def make(folder: Path, *, num_users: int = 20, dated: bool = True) -> tuple[list[Shown], list[Shown]]:
    train, test = course(num_users=num_users, seed=3, days=DAYS)
    write(folder / "SRD-1_train_data.txt", [row.columns(dated=dated) for row in train])
    write(folder / "SRD-1_test_data.txt", [row.columns(dated=dated) for row in test])
    write(folder / "SRD-1_pretrain_data.txt", [pair(101, 901) + pair(102, 902), pair(101, 903) + pair(500, 950)])
    write_vocabulary(folder / "vocab.txt")
    return train, test


def read(out: Path, table: str) -> pd.DataFrame:
    frames = []
    for file in sorted((out / table).glob("dt=*/*.parquet")):
        rows = pq.read_table(file, partitioning=None)
        assert rows.schema.equals(TABLES[table]), file
        frames.append(rows.to_pandas().assign(day=file.parent.name[3:]))
    return pd.concat(frames, ignore_index=True)


def users(out: Path) -> dict[str, int]:
    table = pq.read_table(out / "_ids" / "users.parquet").to_pydict()
    return dict(zip(table["source_id"], table["id"], strict=True))


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[Shown], list[Shown]]:
    folder = tmp_path_factory.mktemp("srd")
    train, test = make(folder / "in")
    return folder / "out", import_srd(source=folder / "in", out=folder / "out", vocabulary=None), train, test


def test_each_row_is_an_impression_and_each_click_is_there_once(
    imported: tuple[Path, dict[str, Any], list[Shown], list[Shown]],
) -> None:
    out, summary, train, test = imported
    impressions = read(out, "impressions")
    number = users(out)
    rows = impressions[impressions.request_id.notna()].sort_values("request_id", key=_place)
    assert [(r.user_id, r.story_id, r.clicked) for r in rows.itertuples()] == [
        (number[row.user], row.story, row.clicked) for row in [*train, *test]
    ]
    assert rows.shown_at.dt.date.tolist() == [DAYS[0]] * len(train) + [DAYS[1]] * len(test)
    expected = {(number[row.user], item, at) for row in [*train, *test] for item, at in row.products[-20:]}
    clicks = read(out, "product_clicks")
    found = [(c.user_id, c.product_id, int(c.clicked_at.timestamp()) - 8 * 3_600) for c in clicks.itertuples()]
    assert len(found) == len(expected)
    assert set(found) == expected
    assert summary["inferred"]["impressions_outside_the_files_day"] == 0


def test_a_click_of_a_later_sequence_is_the_clicked_rows_own(
    imported: tuple[Path, dict[str, Any], list[Shown], list[Shown]],
) -> None:
    out, summary, train, test = imported
    last = {row.user: row for row in test}
    seen = {(row.user, click) for row in last.values() for click in row.stories}
    told = [row for row in [*train, *test] if row.clicked and (row.user, (row.story, row.at)) in seen]
    assert len(told) > 20
    assert summary["inferred"]["clicks_found_in_sequences"] == len(told)
    shown = read(out, "impressions").set_index("request_id").shown_at
    for kind, number, rows in (("train", 1, train), ("test", 2, test)):
        for line, row in enumerate(rows, start=1):
            if row in told:
                assert shown[f"{kind}-{number}-{line}"].timestamp() == row.at + 8 * 3_600
    alone = seen.difference((row.user, (row.story, row.at)) for row in told)
    assert summary["clicks_from_sequences_alone"] == len(alone)


def test_sequences_come_out_of_the_dataset_as_they_are_in_the_files(
    imported: tuple[Path, dict[str, Any], list[Shown], list[Shown]], tmp_path: Path
) -> None:
    out, summary, train, test = imported
    num_rows = len(train) + len(test)
    assert summary["inferred"]["rows_with_the_files_story_sequence"] == num_rows
    assert summary["inferred"]["rows_with_the_files_product_sequence"] == num_rows
    config = Config.model_validate(
        {
            "locations": {"logs": str(out), "work": str(tmp_path / "work")},
            "windows": {"history_days": 7, "training_days": 1, "holdout_days": 1, "block_hours": 1},
            "rules": {"row_count_band": (0.0, 1e9), "click_rate_band": (0.0, 1e9)},
        }
    )
    catch_up(config, day=DAYS[1])
    validate_logs(config, day=DAYS[1])
    dataset = build_dataset(config, day=DAYS[1], out=tmp_path / "dataset")
    number = users(out)
    name = {value: key for key, value in number.items()}
    holdout = dataset.holdout
    assert len(holdout) == len(test)
    found = []
    for row in range(len(holdout)):
        user = int(holdout.user_ids_B[row])
        stories = slice(holdout.story_start_B[row], holdout.story_stop_B[row])
        products = slice(holdout.product_start_B[row], holdout.product_stop_B[row])
        found.append(
            (
                name[user],
                int(dataset.stories.item_ids_N[holdout.story_rows_B[row]]),
                bool(holdout.clicked_B[row]),
                tuple(dataset.story_clicks.item_ids_C[stories].tolist()),
                tuple(dataset.product_clicks.item_ids_C[products].tolist()),
            )
        )
    expected = [
        (
            row.user,
            row.story,
            row.clicked,
            tuple(item for item, _ in row.stories[-20:]),
            tuple(item for item, _ in row.products[-20:]),
        )
        for row in test
    ]
    assert sorted(found) == sorted(expected)
    row = int(dataset.stories.rows([101])[0])
    np.testing.assert_allclose(dataset.stories.visual_raw_NV[row], cover(101), atol=1e-4)


def test_catalogs_hold_titles_covers_and_mounts_and_are_published_before_use(
    imported: tuple[Path, dict[str, Any], list[Shown], list[Shown]],
) -> None:
    out, summary, _, _ = imported
    stories, products = read(out, "stories"), read(out, "products")
    assert stories.story_id.is_unique
    assert products.product_id.is_unique
    words = read_words(out.parent / "in" / "vocab.txt")
    for row in stories.itertuples():
        assert row.title == " ".join(words[token] for token in title(row.story_id))
        np.testing.assert_array_equal(row.cover, cover(row.story_id).astype(np.float32))
    mounted = {row.story_id: list(row.mounted_product_ids) for row in stories.itertuples()}
    assert {story: m for story, m in mounted.items() if m} == {101: [901, 903], 102: [902], 500: [950]}
    assert summary["pairs"] == 4
    assert set(stories.source) == {"other"}
    assert set(products.category_id) == {1}
    story_day, product_day = (
        frame.set_index(column).published_at
        for frame, column in ((stories, "story_id"), (products, "product_id"))
    )  # fmt: skip
    first = read(out, "impressions").groupby("story_id").shown_at.min().dt.floor("D")
    assert (story_day[first.index] == first).all()
    assert product_day[950] == story_day[500] == min(story_day.min(), product_day.min())
    assert all(product_day[product] <= story_day[story] for story, m in mounted.items() for product in m)
    assert (stories.day == stories.published_at.dt.strftime("%Y-%m-%d")).all()


def test_times_in_milliseconds_newest_first_and_packed_give_the_same_logs(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "expected"
    train, test = make(source, num_users=3)
    import_srd(source=source, out=out, vocabulary=None)
    for name, rows in (("train", train), ("test", test)):
        (source / f"SRD-1_{name}_data.txt").unlink()
        turned = []
        for columns in (_newest_first(row.columns()) for row in rows):
            for number in (5, 6):
                columns[number] = ",".join(f"{part}000" for part in columns[number].split(","))
            turned.append(columns)
        text = "".join("\t".join(columns) + "\n" for columns in turned)
        (source / f"SRD-1_{name}_data.txt.gz").write_bytes(gzip.compress(text.encode()))
    import_srd(source=source, out=tmp_path / "out", vocabulary=None)
    for table in TABLES:
        keys = [name for name in TABLES[table].names if name not in ("cover", "mounted_product_ids")]
        expected, found = (read(root, table)[keys].sort_values(keys) for root in (out, tmp_path / "out"))
        pd.testing.assert_frame_equal(found.reset_index(drop=True), expected.reset_index(drop=True))


@pytest.mark.parametrize("newest_first", [False, True])
def test_without_absolute_times_the_hour_blocks_date_the_clicks(tmp_path: Path, newest_first: bool) -> None:
    day = DAYS[0]
    first = Shown(
        "u", 100, False, second(day, 5), [(110, second(day, 1.2)), (113, second(day, 3.3)), (111, second(day, 3.4))], []
    )
    later = Shown("u", 101, True, second(day, 9), [*first.stories, (112, second(day, 6.5))], [(900, second(day, 8.8))])
    write(
        tmp_path / "in" / "SRD-1_train_data.txt",
        [
            _newest_first(row.columns(dated=False)) if newest_first else row.columns(dated=False)
            for row in (first, later)
        ],
    )
    write_vocabulary(tmp_path / "in" / "vocab.txt")
    summary = import_srd(source=tmp_path / "in", out=tmp_path / "out", vocabulary=None)
    assert summary["inferred"]["rows_dated_by_blocks_alone"] == 2
    assert summary["inferred"]["rows_with_the_files_story_sequence"] == 2
    impressions = read(tmp_path / "out", "impressions").set_index("story_id").shown_at
    gap = (impressions[101] - impressions[100]).total_seconds() / 3_600
    assert 3 <= gap <= 5
    assert 1 <= (impressions[101] - impressions[112]).total_seconds() / 3_600 <= 4
    assert (
        impressions[110] < impressions[113] < impressions[111] < impressions[100] < impressions[112] < impressions[101]
    )


def test_word_pieces_stay_one_word_each(tmp_path: Path) -> None:
    words = read_words(write_vocabulary(tmp_path / "vocab.txt"))
    assert words[5] == f"{CONTINUATION}m"
    assert words[9] == f"{CONTINUATION}pot"
    assert words[10] == "女"
    assert words[12] == "★"
    assert words[3] == UNKNOWN_WORD
    vocabulary = train_vocabulary([" ".join(words)], size=100, min_count=1)
    tokens = [4, 5, 6, 8, 9, 3, 13, 11]
    (encoded,) = vocabulary.encode([" ".join(words[token] for token in tokens)], max_words=32)
    assert [vocabulary.words[number] for number in encoded if number] == [words[token] for token in tokens]
    assert len(PIECES) == len(words)


@pytest.mark.skipif(not (REAL / "srd1_pretrain_sample.txt.gz").exists(), reason="the real sample is not beside")
def test_the_real_sample_becomes_catalogs_with_256_pairs(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "srd1_pretrain_sample.txt.gz").symlink_to(REAL / "srd1_pretrain_sample.txt.gz")
    out = tmp_path / "out"
    summary = import_srd(source=tmp_path / "in", out=out, vocabulary=REAL / "bert_chinese_vocab.txt")
    assert (summary["stories"], summary["products"], summary["pairs"]) == (256, 253, 256)
    stories = read(out, "stories").set_index("story_id")
    assert stories.title[235862924258] == "与 狼 共 舞 潮 流 印 花 男 士 修 身 圆 领 体 恤 衫"
    assert list(stories.mounted_product_ids[235862924258]) == [595217875236]
    assert not (out / "impressions").exists()
    norms = np.linalg.norm(np.stack(stories.cover.to_list()), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-3)


def _break(folder: Path, name: str, change: Callable[[list[str]], list[str]], *, line: int) -> None:
    path = folder / name
    rows = [row.split("\t") for row in path.read_text(encoding="utf-8").splitlines()]
    rows[line - 1] = change(rows[line - 1])
    write(path, rows)


def _set(column: int, change: Callable[[str], str]) -> Callable[[list[str]], list[str]]:
    return lambda row: [*row[:column], change(row[column]), *row[column + 1 :]]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda row: row[:-1], "15 columns"),
        (_set(2, lambda text: "99" + text[text.index(",") :]), "token 99"),
        (_set(6, lambda text: "nan" + text[text.index(",") :]), "column 7 (content_image_feat) has the value 'nan'"),
        (_set(6, lambda text: text + ",0.1"), "513 values"),
        (_set(14, lambda text: text.replace("0.", "x.", 1)), "no number"),
        (_set(0, lambda text: "0"), "column 1 (content_id) is '0'"),
    ],
)
def test_a_broken_line_is_named_and_nothing_is_left(
    tmp_path: Path, change: Callable[[list[str]], list[str]], named: str
) -> None:
    write(tmp_path / "in" / "SRD-1_pretrain_data.txt", [pair(101, 901) + pair(102, 902), pair(3, 903) + pair(4, 904)])
    write_vocabulary(tmp_path / "in" / "vocab.txt")
    _break(tmp_path / "in", "SRD-1_pretrain_data.txt", change, line=2)
    with pytest.raises(DataError) as caught:
        import_srd(source=tmp_path / "in", out=tmp_path / "out", vocabulary=None)
    assert named in str(caught.value)
    assert caught.value.where == f"{tmp_path / 'in' / 'SRD-1_pretrain_data.txt'}, line 2"
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_set(2, lambda text: "2"), "column 3 (content_click)"),
        (_set(4, lambda text: "901"), "column 5 (product_seq)"),
        (_set(5, lambda text: "5," + text[text.index(",") + 1 :]), "column 6 (content_time_seq)"),
        (_set(5, lambda text: ",".join("5" for _ in text.split(","))), "absolute times in both, or in none"),
        (_set(6, lambda text: "inf" + text[text.index(",") :]), "column 7 (product_time_seq) has the time inf"),
        (_set(6, lambda text: text[: text.rindex(",")] + ",nan"), "column 7 (product_time_seq) has the time nan"),
        (_set(6, lambda text: text.replace(",", "000000,") + "000000"), "no time after 2099"),
        (_set(6, lambda text: text + "000"), "one unit, seconds or milliseconds"),
        (_set(7, lambda text: "21"), "column 8 (content_seq_len)"),
        (_set(18, lambda text: "170" + text[text.index(",") :]), "column 19 (content_seq_time_ids)"),
    ],
)
def test_a_broken_sequence_is_named(tmp_path: Path, change: Callable[[list[str]], list[str]], named: str) -> None:
    make(tmp_path / "in", num_users=1)
    _break(tmp_path / "in", "SRD-1_test_data.txt", change, line=3)
    with pytest.raises(DataError) as caught:
        import_srd(source=tmp_path / "in", out=tmp_path / "out", vocabulary=None)
    assert named in str(caught.value)
    assert caught.value.where.endswith("SRD-1_test_data.txt, line 3")


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    write_vocabulary(source / "vocab.txt")
    with pytest.raises(DataError, match="no published file"):
        import_srd(source=source, out=tmp_path / "out", vocabulary=None)
    packed = gzip.compress(("\t".join(pair(101, 901) + pair(102, 902)) + "\n").encode() * 5)
    path = source / "SRD-1_pretrain_data.txt.gz"
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="cannot be unpacked") as caught:
        import_srd(source=source, out=tmp_path / "out", vocabulary=None)
    assert str(path) in caught.value.where
    path.unlink()
    row = "\t".join(pair(101, 901) + pair(102, 902)).encode()
    (source / "SRD-1_pretrain_data.txt").write_bytes(row + b"\n\xff" + row)
    with pytest.raises(DataError, match="not UTF-8") as caught:
        import_srd(source=source, out=tmp_path / "out", vocabulary=None)
    assert caught.value.where.endswith("line 2")
    (source / "SRD-2_train_data.txt").write_bytes(b"")
    with pytest.raises(DataError, match="do not belong together"):
        import_srd(source=source, out=tmp_path / "out", vocabulary=None)
    (source / "SRD-2_train_data.txt").unlink()
    with pytest.raises(DataError, match="the vocabulary cannot be read"):
        import_srd(source=source, out=tmp_path / "out", vocabulary=tmp_path / "none.txt")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("packed", [False, True])
def test_an_empty_file_is_an_error_and_no_import_of_the_others(tmp_path: Path, packed: bool) -> None:
    source = tmp_path / "in"
    make(source, num_users=1)
    (source / "SRD-1_test_data.txt").unlink()
    path = source / f"SRD-1_test_data.txt{'.gz' * packed}"
    path.write_bytes(b"" if packed else b"\n  \n")
    with pytest.raises(DataError, match="the file is empty") as caught:
        import_srd(source=source, out=tmp_path / "out", vocabulary=None)
    assert caught.value.where == str(path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("make_it", [Path.mkdir, lambda path: path.symlink_to("nowhere")], ids=["folder", "link"])
def test_what_has_a_files_name_and_is_none_is_an_error(tmp_path: Path, make_it: Callable[[Path], None]) -> None:
    source = tmp_path / "in"
    make(source, num_users=1)
    (source / "SRD-1_test_data.txt").unlink()
    make_it(source / "SRD-1_test_data.txt")
    with pytest.raises(DataError, match=r"SRD-1_test_data\.txt is no file") as caught:
        import_srd(source=source, out=tmp_path / "out", vocabulary=None)
    assert caught.value.where == str(source / "SRD-1_test_data.txt")


def test_a_byte_order_mark_makes_no_other_user(tmp_path: Path) -> None:
    source = tmp_path / "in"
    make(source, num_users=1)
    path = source / "SRD-1_train_data.txt"
    path.write_bytes(BOM_UTF8 + path.read_bytes())
    with pytest.raises(DataError, match="byte order mark") as caught:
        import_srd(source=source, out=tmp_path / "out", vocabulary=None)
    assert caught.value.where == f"{path}, line 1"


def test_names_in_other_cases_are_known(tmp_path: Path) -> None:
    source = tmp_path / "in"
    make(source, num_users=1)
    path = source / "SRD-1_train_data.txt"
    packed = source / "SRD-1_TRAIN_data.txt.GZ"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(DataError, match="do not belong together"):
        import_srd(source=source, out=tmp_path / "out", vocabulary=None)
    path.unlink()
    assert import_srd(source=source, out=tmp_path / "out", vocabulary=None)["lines"][packed.name] == 4


def test_the_same_import_again_writes_nothing_and_another_is_refused(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    make(source, num_users=1)
    first = import_srd(source=source, out=out, vocabulary=None)
    (out / "kept").touch()
    assert import_srd(source=source, out=out, vocabulary=None) == first == json.loads((out / MARKER).read_text())
    assert (out / "kept").exists()
    (source / "SRD-1_test_data.txt").unlink()
    with pytest.raises(DataError, match="other files or settings"):
        import_srd(source=source, out=out, vocabulary=None)


def test_the_command_prints_the_summary_and_ends_with_2_on_a_broken_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    make(source, num_users=1)
    result = CliRunner().invoke(cli.app, ["import", "srd", str(source), str(tmp_path / "out")])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["rows"] == 8
    _break(source, "SRD-1_test_data.txt", lambda row: row[:-1], line=2)
    monkeypatch.setattr("sys.argv", ["storyrec", "import", "srd", str(source), str(tmp_path / "other")])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == EXIT_CODE
    assert "SRD-1_test_data.txt, line 2" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def _place(names: pd.Series) -> pd.Series:
    return names.str.extract(r"-(\d+)-(\d+)").astype(int).apply(lambda row: row[0] * 10_000 + row[1], axis=1)


def _turn(text: str, *, real: int) -> str:
    values = text.split(",")
    rows = [values[start : start + len(values) // 20] for start in range(0, len(values), len(values) // 20)]
    return ",".join(value for row in [*rows[:real][::-1], *rows[real:]] for value in row)


def _newest_first(columns: list[str]) -> list[str]:
    for length, narrow, wide in ((7, (3, 5), (11, 12, 16, 18)), (8, (4, 6), (13, 14, 17, 19))):
        for number in narrow:
            columns[number] = ",".join(reversed(columns[number].split(",")))
        for number in wide:
            columns[number] = _turn(columns[number], real=int(columns[length]))
    return columns
