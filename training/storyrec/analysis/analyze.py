"""`storyrec analyze`: the analyses of the paper's Section II for any data root, as one JSON document.

Paper: Tables I, II and III, Figs. 1, 3 and 4.
"""

from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from storyrec.analysis import published
from storyrec.analysis.behaviour import Behaviour, measure_behaviour
from storyrec.analysis.catalogs import measure_catalogs
from storyrec.analysis.database import open_database, read_columns
from storyrec.analysis.facts import click_rates, cold_start_facts, coverage_facts, duplicate_facts
from storyrec.analysis.files import find_files
from storyrec.analysis.sequences import SplitSums
from storyrec.analysis.titles import Titles, measure_titles
from storyrec.config import Auto
from storyrec.data.windows import automatic_history
from storyrec.features.similarity import SIMILARITY_EDGES
from storyrec.logs.days import last_whole_days
from storyrec.logs.partitions import day_number
from storyrec.progress import track
from storyrec.schema import SOURCES, Domain

Document = dict[str, Any]
"""What JSON holds."""

GAP_EDGES = (0, 1, 3, 6, 12, 24, 48, 72, 96, 120, 144, 168, 336, 672, 2_016, 8_760)
"""Hours before the impression where the bins of Fig. 3 begin."""
NUM_CATEGORIES = 20


def analyze(
    data: Path,
    *,
    history_days: int | Auto,
    sequence_length: int,
    vocabulary_size: int,
    min_word_count: int,
    max_title_words: int,
    seed: int,
) -> Document:
    """Measure the logs of a data root.

    The last whole day is the test day, the partition before it the training day; what comes after is left out.

    Args:
        data: data root of the log contract, a folder.
        history_days, sequence_length: what a sequence may hold, as in the models' datasets.
        vocabulary_size, min_word_count, max_title_words: as the models' vocabulary is trained and used.
        seed: of the draw of training's non-clicked impressions.

    Raises:
        DataError: a table is missing or unreadable, or there are no three days of impressions.
    """
    found = find_files(data)
    days = found["impressions"].num_rows
    training_day, test_day = last_whole_days([*days], size=days.__getitem__, where=f"{data}/impressions")
    files = {table: some.until(test_day) for table, some in found.items()}
    with track("analyze", total=6) as progress, open_database(files) as connection:
        progress.advance(note="catalogs")
        catalogs = measure_catalogs(connection, files=files)
        progress.advance(note="users")
        is_fine = _has_times_of_day(connection, test_day)
        history, reason = automatic_history(is_fine=is_fine, span=(test_day - min(days)).days + 1)
        if history_days != "auto":
            history, reason = history_days, "as the settings say"
        behaviour = measure_behaviour(
            connection,
            num_rows=sum(sum(files[table].num_rows.values()) for table in ("impressions", "product_clicks")),
            training_day=training_day,
            test_day=test_day,
            history_days=history,
            length=sequence_length,
            seed=seed,
            progress=progress,
        )
        titles = measure_titles(
            connection,
            last_day=test_day,
            vocabulary_size=vocabulary_size,
            min_word_count=min_word_count,
            max_title_words=max_title_words,
            progress=progress,
        )
        splits = {
            "training": _split(connection, behaviour.users.training),
            "test": _split(connection, behaviour.users.test),
        }
    about = {
        "path": str(data),
        "first_day": str(min(days)),
        "training_day": str(training_day),
        "test_day": str(test_day),
        "num_days_left_out": sum(day > test_day for day in days),
        "history_days": history,
        "history_reason": reason,
        "sequence_length": sequence_length,
        "has_times_of_day": is_fine,
        "seed": seed,
    }
    return {
        "data": about,
        **_tables(splits, behaviour.users.training + behaviour.users.test, titles),
        **_figures(behaviour),
        "click_rates": click_rates(behaviour, test_day=test_day, by_hour=is_fine),
        "cold_start": cold_start_facts(behaviour, test_day=test_day),
        "duplicates": duplicate_facts(behaviour, catalogs),
        "coverage": coverage_facts(behaviour, catalogs, files=files),
        "titles": _title_document(titles),
    }


def _has_times_of_day(connection: duckdb.DuckDBPyConnection, day: date) -> bool:
    """Whether any impression of a day is at another time than midnight."""
    query = "SELECT coalesce(bool_or(us % 86400000000 <> 0), false) FROM impressions WHERE day = ?"
    return bool(connection.execute(query, [day_number(day)]).fetchall()[0][0])


def _split(connection: duckdb.DuckDBPyConnection, sums: SplitSums) -> Document:
    """A column of Table I; products are those in sequences and those that its stories mount."""
    pairs = read_columns(connection, "SELECT story_row, product_row FROM pairs")
    products_N = sums.product_marks_N.copy()
    products_N[pairs["product_row"][sums.story_marks_N[pairs["story_row"]]]] = True
    return {
        "instances": sums.num_instances,
        "users": sums.num_users,
        "sequences": sums.num_sequences,
        "stories": int(sums.story_marks_N.sum()),
        "products": int(products_N.sum()),
        "clicked": sums.num_clicked,
    }


def _tables(splits: Document, both: SplitSums, titles: Titles) -> Document:
    num = both.num_sequences
    means = [*both.lengths_D, *both.categories_D, both.overlap]
    names = ["story_length", "product_length", "story_categories", "product_categories", "overlap"]
    return {
        "table_1": {"here": splits, **published.TABLE_1},
        "table_2": {"edges": SIMILARITY_EDGES, "here": titles.similarity_K, **published.TABLE_2},
        "table_3": {
            "here": {name: float(total / num) if num else None for name, total in zip(names, means, strict=True)},
            **published.TABLE_3,
        },
    }


def _figures(behaviour: Behaviour) -> Document:
    both = behaviour.users.training + behaviour.users.test
    by_source = behaviour.rates.groupby("source")[["shown", "clicked"]].sum()
    ordered = [source for source in (*SOURCES, "none") if source in by_source.index]
    num_hours = both.gaps_DH.shape[1]
    edges = [edge for edge in GAP_EDGES if edge < num_hours]
    gaps_D = np.add.reduceat(both.gaps_DH, edges, axis=1).tolist()
    story_K, product_K = both.clicks_DK
    popular = [place for place in np.argsort(-story_K, kind="stable") if place > 0 and story_K[place]][:NUM_CATEGORIES]
    return {
        "figure_1": [
            {"source": source, "shown": int(by_source.shown[source]), "clicked": int(by_source.clicked[source])}
            for source in ordered
        ],
        "figure_3": {
            "edges_hours": edges,
            "story": gaps_D[Domain.STORY],
            "product": gaps_D[Domain.PRODUCT],
            "published": published.FIGURE_3,
        },
        "figure_4": {
            "num_story_clicks": int(story_K[1:].sum()),
            "num_product_clicks": int(product_K[1:].sum()),
            "categories": [
                {
                    "category_id": int(behaviour.category_ids_K[place]),
                    "story_clicks": int(story_K[place]),
                    "product_clicks": int(product_K[place]),
                }
                for place in popular
            ],
        },
    }


def _title_document(titles: Titles) -> Document:
    return {
        "vocabulary_size": titles.vocabulary_size,
        "num_distinct_words": titles.num_distinct_words,
        **{
            name: {
                "mean_length": figures.mean_length,
                "lengths": figures.lengths_L,
                "num_new": figures.num_new,
                "num_new_words": figures.num_new_words,
                "num_unknown_words": figures.num_unknown_words,
            }
            for name, figures in (("story", titles.story), ("product", titles.product))
        },
    }
