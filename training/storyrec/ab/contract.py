"""The logs of an online test: who was put into which arm, and what they then were shown and did.

Paper: Sec. IV-F. Either log is a Parquet file, or a folder of them at any depth. The impressions of the log
contract, `storyrec.schema.IMPRESSIONS`, are outcomes without dwell times.
"""

import pyarrow as pa

from storyrec.schema import TIMESTAMP

CONTROL, TREATMENT = ARMS = ("control", "treatment")

EXPOSURES = pa.schema([("user_id", pa.int64()), ("arm", pa.string()), ("exposed_at", TIMESTAMP)])
"""A row each time a user meets the test, or the first time alone; `arm` is one of ARMS."""

OUTCOMES = pa.schema(
    [
        ("user_id", pa.int64()),
        ("story_id", pa.int64()),
        ("shown_at", TIMESTAMP),
        ("clicked", pa.bool_()),
        ("dwell_seconds", pa.float64()),
    ]
)
"""An impression each; `dwell_seconds` is null where nothing was measured, and may be missing as a column."""

OPTIONAL = ("dwell_seconds",)
