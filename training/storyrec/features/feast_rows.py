"""Rows as Feast hands them over, packed, and packed values as Feast wants them back."""

from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np
from feast import FeatureView
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import FloatList, Int64List, Value

from storyrec.errors import DataError
from storyrec.features.merge import AHEAD_US, FIRST_US, NOTHING, Recent, merge_sequences, pack_sequence
from storyrec.features.packed import ARRAYS, TEXT, Layout, Row
from storyrec.features.refusals import Refusal

MODEL = "model"
"""The key that names the model whose row it is."""


class RowsRefused(DataError, Refusal):
    """Rows that no view can hold."""

    status = 422


def layout_of(view: FeatureView) -> Layout:
    """How a view's rows are packed.

    Raises:
        RowsRefused: its key or a feature is of a type that cannot be packed.
    """
    fields = tuple((field.name, field.dtype.to_value_type().name) for field in view.features)
    keys = {column.name: column.dtype.to_value_type().name for column in view.entity_columns}
    by_model = keys.pop(MODEL, None) == TEXT
    if [*keys.values()] != ["INT64"] or not {kind for _, kind in fields} <= {*ARRAYS, TEXT}:
        raise RowsRefused(
            f"the view {view.name} has the keys {keys} and the features {dict(fields)}",
            expected=f"one INT64 key, and {MODEL} ({TEXT}) or none; features of {', '.join([*ARRAYS, TEXT])}",
            where="feature_repo/definitions.py",
            remedy="declare other types, or teach storyrec.features.packed this one",
        )
    (key,) = keys
    shapes = (field.tags.get("shape", "") for field in view.features)
    widths = tuple(
        int(shape) if kind in ARRAYS and shape.isdecimal() else 0
        for (_, kind), shape in zip(fields, shapes, strict=True)
    )
    return Layout(view.name, key, fields, int(view.tags.get("length", 0)), by_model, widths)


def read_key(layout: Layout, key: EntityKey) -> tuple[int, str]:
    """The id of a key, and the model that it names; empty in a view that is not by model."""
    values = dict(zip(key.join_keys, key.entity_values, strict=True))
    return values[layout.key].int64_val, values[MODEL].string_val if layout.by_model else ""


def pack_row(layout: Layout, entity: int, features: Mapping[str, Value], event_time: datetime, *, now_us: int) -> bytes:
    """A row as it is stored.

    Args:
        layout: of its view.
        entity: its key.
        features: its values.
        event_time: counts where the view is no sequence.
        now_us: the clock's time, epoch microseconds.

    Raises:
        RowsRefused: a value is missing, or is none of its view.
    """
    fields = []
    missing = [name for name, kind in layout.fields if features[name].WhichOneof("val") != f"{kind.lower()}_val"]
    if missing or entity <= 0:
        raise _refused(
            layout, entity, f"missing: {', '.join(missing)}" if missing else "no id", "every feature, id > 0"
        )
    for name, kind in layout.fields:
        value = getattr(features[name], f"{kind.lower()}_val")
        fields.append(value.encode() if kind == TEXT else np.asarray(value.val, ARRAYS[kind]).tobytes())
    last_us = now_us + AHEAD_US
    if not layout.length:
        for (name, kind), width, field in zip(layout.fields, layout.widths, fields, strict=True):
            numbers = np.frombuffer(field, ARRAYS[kind]) if width else np.empty(0)
            if len(numbers) != width or not np.isfinite(numbers).all():
                raise _refused(layout, entity, f"{name} of {len(numbers)} numbers", f"{width} of them, all finite")
        if _microseconds(event_time) > last_us:
            raise _refused(layout, entity, f"event time {event_time}", "one that is not in the future")
        return layout.pack(Row(_microseconds(event_time), 0, tuple(fields)))
    items, times = (np.frombuffer(field, np.int64).tolist() for field in fields)
    if not items or len(items) != len(times) or min(items) <= 0 or min(times) < FIRST_US or max(times) > last_us:
        found = f"items {items}, times {times}"
        expected = "as many items (> 0) as times (epoch microseconds, not in the future), at least one"
        raise _refused(layout, entity, found, expected)
    pushed = Recent(0, list(zip(times, items, strict=True)))
    return pack_sequence(layout, merge_sequences(NOTHING, pushed, length=layout.length))


def to_feast(layout: Layout, row: Row, name: str) -> Value:
    """A feature of a row as Feast's value."""
    value = layout.value(row, name)
    if isinstance(value, str):
        return Value(string_val=value)
    if value.dtype == np.int64:
        return Value(int64_list_val=Int64List(val=value.tolist()))
    return Value(float_list_val=FloatList(val=value.tolist()))


def _refused(layout: Layout, entity: int, found: str, expected: str) -> RowsRefused:
    return RowsRefused(
        found,
        expected=expected,
        where=f"{layout.view}, {layout.key} {entity}",
        remedy="correct this row and send all again; nothing of them was written",
    )


def _microseconds(time: datetime) -> int:
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    return round(aware.timestamp() * 1_000_000)
