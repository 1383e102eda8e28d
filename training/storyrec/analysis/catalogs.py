"""What the catalogs hold: repeated items, and how many have a title, a cover, a source, a mounted product."""

from collections.abc import Mapping
from dataclasses import dataclass

import duckdb

from storyrec.analysis.files import TableFiles


@dataclass(frozen=True)
class CatalogFigures:
    """One catalog.

    Attributes:
        num_rows: of all partitions, as they are.
        num_covers: rows with a cover.
        num_items: distinct items with an id, published by their partition's day.
        num_repeated_items: of these, items with more than one row.
        num_untitled: items without a title.
        num_repeated_titles: titled items beyond the first one with the same title.
    """

    num_rows: int
    num_covers: int
    num_items: int
    num_repeated_items: int
    num_untitled: int
    num_repeated_titles: int


@dataclass(frozen=True)
class Catalogs:
    """Both catalogs.

    Attributes:
        stories, products: by themselves.
        num_unsourced: stories whose source is none, "other" or no source of the contract.
        num_mounting: stories that mount a product.
        num_pairs: distinct pairs of a story and a product that the catalog knows.
        num_unknown_mounts: mounted products, by story, that no catalog knows.
    """

    stories: CatalogFigures
    products: CatalogFigures
    num_unsourced: int
    num_mounting: int
    num_pairs: int
    num_unknown_mounts: int


def measure_catalogs(connection: duckdb.DuckDBPyConnection, *, files: Mapping[str, TableFiles]) -> Catalogs:
    """Count the items of both catalogs.

    Args:
        connection: of `open_database`.
        files: what it was opened with.
    """
    (num_unsourced,) = _row(
        connection, "count(*) FILTER (source IS NULL OR source NOT IN ('ugv', 'mgv', 'segv', 'ugi', 'mgi'))", "stories"
    )
    num_mounts, num_mounting = _row(connection, "count(*), count(DISTINCT story_row)", "mounts")
    (num_pairs,) = _row(connection, "count(*)", "pairs")
    return Catalogs(
        stories=_catalog(connection, "stories", files["stories"]),
        products=_catalog(connection, "products", files["products"]),
        num_unsourced=num_unsourced,
        num_mounting=num_mounting,
        num_pairs=num_pairs,
        num_unknown_mounts=num_mounts - num_pairs,
    )


def _catalog(connection: duckdb.DuckDBPyConnection, table: str, files: TableFiles) -> CatalogFigures:
    num_items, num_repeated, num_titled, num_titles = _row(
        connection,
        r"""count(*), count(*) FILTER (num_rows > 1), count(*) FILTER (regexp_matches(title, '\S')),
            count(DISTINCT hash(title)) FILTER (regexp_matches(title, '\S'))""",
        table,
    )
    return CatalogFigures(
        num_rows=sum(files.num_rows.values()),
        num_covers=sum(files.num_covers.values()),
        num_items=num_items,
        num_repeated_items=num_repeated,
        num_untitled=num_items - num_titled,
        num_repeated_titles=num_titled - num_titles,
    )


def _row(connection: duckdb.DuckDBPyConnection, columns: str, table: str) -> tuple[int, ...]:
    found = connection.execute(f"SELECT {columns} FROM {table}").fetchone()
    assert found is not None
    return found
