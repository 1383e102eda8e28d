"""Rows that arrive over HTTP, looked at before Feast converts them.

Feast takes 1.5 for the id 1 and a time without a zone for UTC, answers 200 to nulls and writes nothing, and calls its
own error what is wrong with a column. What the values mean is looked at where they are packed (`feast_rows`).
"""

import reprlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, cast

from feast import FeatureStore, FeatureView, FileSource

from storyrec.features.feast_rows import MODEL, RowsRefused, layout_of

INT64 = range(-(2**63), 2**63)
CENTURY = range(2000, 2100)
PUSH, WRITE = "/push", "/write-to-online-store"
REMEDY = "correct this and send all again; nothing of them was written"

Kind = tuple[Callable[[Any], Any], str]
"""Gives a JSON value as Feast needs it, or raises TypeError or ValueError; and what it is in words."""


def view_of(store: FeatureStore, path: str, asked: Mapping[str, Any]) -> FeatureView | None:
    """The view that a request brings rows to; None where there is none of this name."""
    views = store.list_feature_views(allow_cache=True)
    if path == WRITE:
        return next((view for view in views if view.name == asked["feature_view_name"]), None)
    name = asked["push_source_name"]
    return next((view for view in views if view.stream_source and view.stream_source.name == name), None)


def incoming_rows(view: FeatureView, asked: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The columns of a view, each value in the one form that Feast understands.

    Args:
        view: where the rows go.
        asked: the request: `df` has a column a name, as JSON has them; `to` is where a push goes.

    Raises:
        RowsRefused: a column is missing, is not as long as the others, or holds a value of another type.
    """
    if asked.get("to", "online") != "online":
        raise _refused(view, f"to: {asked['to']!r}", "to: 'online'; offline, the logs bring all rows")
    kinds, columns = _kinds(view), asked["df"]
    missing = kinds.keys() - columns.keys()
    if missing:
        raise _refused(view, f"no {', '.join(sorted(missing))}", f"the columns {', '.join(kinds)}")
    sizes = {name: len(columns[name]) if isinstance(columns[name], list) else 0 for name in kinds}
    if len({*sizes.values()}) != 1 or 0 in sizes.values():
        found = ", ".join(f"{size} of {name}" for name, size in sizes.items())
        raise _refused(view, f"values: {found}", "lists of one length, at least one row")
    rows: dict[str, list[Any]] = {name: [] for name in kinds}
    for name, (read, expected) in kinds.items():
        for number, value in enumerate(columns[name], 1):
            try:
                rows[name].append(read(value))
            except (TypeError, ValueError):
                raise _refused(view, f"{name} of row {number} is {reprlib.repr(value)}", expected) from None
    return rows


def _kinds(view: FeatureView) -> dict[str, Kind]:
    layout, source = layout_of(view), cast(FileSource, view.batch_source)
    return {
        layout.key: (_id, "a whole number of 64 bits"),
        **({MODEL: KINDS["STRING"]} if layout.by_model else {}),
        **{name: KINDS[kind] for name, kind in layout.fields},
        source.timestamp_field: TIME,
        source.created_timestamp_column: TIME,
    }


def _id(value: Any) -> int:
    if type(value) is not int or value not in INT64:
        raise ValueError
    return value


def _number(value: Any) -> float:
    return float(value if type(value) is float else _id(value))


def _some(values: Any, read: Callable[[Any], Any]) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise ValueError
    return [*map(read, values)]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or not value:
        raise ValueError
    return value


def _time(value: Any) -> str:
    time = datetime.fromisoformat(value)
    if time.tzinfo is None or time.year not in CENTURY:
        raise ValueError
    return time.astimezone(UTC).isoformat(timespec="microseconds")  # Feast reads all in the form of the first one


TIME: Kind = (_time, "a time of this century with its zone, such as 2026-03-09T12:00:00Z")
KINDS: dict[str, Kind] = {
    "INT64_LIST": (lambda values: _some(values, _id), "a list of whole numbers, at least one"),
    "FLOAT_LIST": (lambda values: _some(values, _number), "a list of numbers, at least one"),
    "STRING": (_text, "a text of one line"),
}
"""Of a feature, by Feast's name of its type."""


def _refused(view: FeatureView, found: str, expected: str) -> RowsRefused:
    return RowsRefused(found, expected=expected, where=f"rows of {view.name}", remedy=REMEDY)
