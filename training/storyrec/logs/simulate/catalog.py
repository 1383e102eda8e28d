"""The catalog partitions of a simulated marketplace, a part of the items at a time.

Shapes: N = items of a part, W = words of a product's title.
"""

from collections.abc import Callable, Iterator
from datetime import date, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storyrec.logs.simulate.coined import Coined
from storyrec.logs.simulate.covers import Covers, missing_covers
from storyrec.logs.simulate.dirt import Counts, add_faults
from storyrec.logs.simulate.parts import to_table, write_part
from storyrec.logs.simulate.presets import Preset
from storyrec.logs.simulate.scenarios import Scenario, break_covers
from storyrec.logs.simulate.truth import Knobs
from storyrec.logs.simulate.wording import Wording, spell
from storyrec.logs.simulate.world import Catalogs, Floats, Ints, Items
from storyrec.schema import COVER_WIDTH, SOURCES, TABLES, Domain


def write_catalogs(
    catalogs: Catalogs,
    logs: Path,
    *,
    items_per_part: int,
    first_day: date,
    num_days: int,
    preset: Preset,
    knobs: Knobs,
    scenario: Scenario,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> Counts:
    """Write `products` and `stories` of every day.

    Args:
        catalogs: all items; the first day's partitions also hold those that were there from the start.
        logs: the folder of the tables.
        advance: called after every day.

    Returns:
        Counts of the rows and faults.
    """
    covers = Covers(gap=knobs.gap)
    spelt = partial(spell, language=preset.language, latin_share=preset.latin_share)
    wording = Wording(preset, catalogs.topics, shared_words=knobs.shared_words)
    products, stories, traits = catalogs.products, catalogs.stories, catalogs.traits
    mounted_M = np.unique(traits.mounts_N3[:, 0])  # their words are copied; -1, none, has words that nobody reads
    words_MW = np.zeros((len(mounted_M), wording.width), np.int32)
    num_titles = [sum(len(_born(items, day)) for items in (products, stories)) for day in range(num_days)]
    counts = Counts()

    def cover_column(
        items: Items, rows: Ints, *, style: Floats | None, domain: Domain, rng: np.random.Generator
    ) -> pa.ListArray:
        cover_NV = covers.draw(items.latent_NZ[rows], style_NE=style, domain=domain, rng=rng)
        there_N = np.ones(len(rows), bool)
        there_N[missing_covers(len(rows), share=preset.missing_cover_share, rng=rng)] = False
        return _list_column(cover_NV[there_N].reshape(-1), there_N * COVER_WIDTH, there=there_N)

    def write(name: str, columns: dict[str, object], *, day: int, part: int, rng: np.random.Generator) -> None:
        table, faults = add_faults(to_table(columns, TABLES[name]), name=name, rng=rng)
        if scenario.broken_covers and day == num_days - 1:
            table = break_covers(table)
        partition = str(first_day + timedelta(days=day))
        write_part(table, logs / name, partition=partition, part=part, use_dictionary=True)
        counts.add(name, rows=table.num_rows, faults=faults)

    def changed(rows: Ints, *, born_N: Ints, day: int, rng: np.random.Generator) -> Ints:
        earlier = rows[(rows >= 0) & (born_N[rows] < day)]
        return earlier[rng.random(len(earlier)) < preset.changed_share] if day else earlier[:0]

    for day in range(num_days):
        # one stream for the first part of both tables
        rng = np.random.default_rng([seed, 7, day])
        changes = np.random.default_rng([seed, 10, day])
        coined = Coined.of_day(preset.new_word_share, num_titles_by_day=num_titles, day=day)
        for part, rows in _parts(products, day, size=items_per_part):
            part_rng = rng if part == 0 else np.random.default_rng([seed, 7, day, part])
            words_NW = wording.product_words(products, rows, coined=coined, rng=part_rng)
            if part == 0:
                again = changed(mounted_M, born_N=products.born_N, day=day, rng=changes)
                reworded = wording.reword(words_MW[np.searchsorted(mounted_M, again)], rng=changes)
                rows, words_NW = np.append(rows, again), np.append(words_NW, reworded, axis=0)
            place_N = np.minimum(np.searchsorted(mounted_M, rows), len(mounted_M) - 1)
            is_mounted_N = mounted_M[place_N] == rows
            words_MW[place_N[is_mounted_N]] = words_NW[is_mounted_N]
            columns = {
                "product_id": rows + 1,
                "title": list(map(spelt, wording.titles(words_NW))),
                "cover": cover_column(products, rows, style=None, domain=Domain.PRODUCT, rng=part_rng),
                "cover_uri": pa.nulls(len(rows), pa.string()),
                "category_id": catalogs.topics.category_T[products.topic_N[rows]] + 1,
                "published_at": products.published_us_N[rows],
            }
            write("products", columns, day=day, part=part, rng=part_rng)
        for part, rows in _parts(stories, day, size=items_per_part):
            part_rng = rng if part == 0 else np.random.default_rng([seed, 7, day, part, 1])
            if part == 0:
                every = np.arange(len(stories.born_N))
                rows = np.append(rows, changed(every, born_N=stories.born_N, day=day, rng=changes))
            mounts_N3 = traits.mounts_N3[rows]
            mounted = wording.titles(words_MW[np.searchsorted(mounted_M, mounts_N3[:, 0])])
            titles = wording.story_words(
                stories,
                traits,
                rows,
                mounted=[title if mount >= 0 else None for title, mount in zip(mounted, mounts_N3[:, 0], strict=True)],
                coined=coined,
                rng=part_rng,
            )
            columns = {
                "story_id": rows + 1,
                "title": list(map(spelt, titles)),
                "cover": cover_column(stories, rows, style=traits.style_NE[rows], domain=Domain.STORY, rng=part_rng),
                "cover_uri": pa.nulls(len(rows), pa.string()),
                "source": np.asarray(SOURCES)[traits.source_N[rows]],
                "published_at": stories.published_us_N[rows],
                "mounted_product_ids": _list_column(mounts_N3[mounts_N3 >= 0] + 1, (mounts_N3 >= 0).sum(axis=1)),
            }
            write("stories", columns, day=day, part=part, rng=part_rng)
        advance()
    return counts


def _parts(items: Items, day: int, *, size: int) -> Iterator[tuple[int, Ints]]:
    """The rows of a day, so many at a time."""
    born = _born(items, day)
    for part, start in enumerate(range(0, len(born), size)):
        yield part, np.asarray(born[start : start + size])


def _born(items: Items, day: int) -> range:
    """Rows that are new on a day; on the first, also those from the start. Rows are ordered by birth."""
    first, last = np.searchsorted(items.born_N, [day if day else items.born_N[0], day + 1])
    return range(first, last)


def _list_column(values: Ints | Floats, lengths_N: Ints, *, there: npt.NDArray[np.bool_] | None = None) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths_N)]).astype(np.int32)
    mask = None if there is None else pa.array(~there)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), mask=mask)
