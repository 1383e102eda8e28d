"""The store against the slices: what Feast returns must be what training and serving see.

Instances point into a click log (`ClickLog.window`); the feature store keeps copies of the same
sequences. Row by row, both must say the same, or somebody trains on what is not served.

Suffixes: B = impressions.
"""

from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt
import pandas as pd

from storyrec.config import Config
from storyrec.errors import DataError
from storyrec.features.events import COLUMNS, EVENT_TIME
from storyrec.features.partitions import read_clicks, read_marker, validated_days, work_folder
from storyrec.features.sequences import ClickLog, to_int64
from storyrec.logs.partitions import VALIDATED, read_partition
from storyrec.schema import Domain
from storyrec.storage import FolderStorage

THE_BEGINNING_US = np.iinfo(np.int64).min

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SequencesCompared:
    """Rows of the store that equal the slices.

    Attributes:
        day: of the impressions.
        num_rows: impressions compared.
        num_clicked: of these, clicked: their own click must not stand in their sequence.
        num_clicks: clicks in the compared sequences, both domains.
    """

    day: date
    num_rows: int
    num_clicked: int
    num_clicks: int


def compare_sequences(config: Config, *, day: date, num_rows: int) -> SequencesCompared:
    """Compare the slices of a day's impressions with the store's historical retrieval.

    The windows of a run (history_days) cut a prefix off both alike; it is left on here.

    Args:
        config: settings; locations.work, profile, features.sequence_length.
        day: partition key, validated and built.
        num_rows: how many impressions, spread evenly over the day's users; all if there are fewer.

    Raises:
        DataError: a row differs; the message shows the first one.
        MissingPartition: the day is not built.
    """
    from storyrec.features.store import open_feature_store

    storage = FolderStorage(work_folder(config.locations.work))
    read_marker(storage, day)
    impressions = read_partition(
        storage, "impressions", day, prefix=VALIDATED, columns=("user_id", "shown_at", "clicked")
    )
    users_B, shown_us_B = to_int64(impressions["user_id"]), to_int64(impressions["shown_at"])
    order_B = np.lexsort((shown_us_B, users_B))
    order_B = order_B[np.linspace(0, len(order_B) - 1, min(num_rows, len(order_B))).astype(np.int64)]
    users_B, shown_us_B = users_B[order_B], shown_us_B[order_B]
    clicked_B = impressions["clicked"].to_numpy()[order_B]

    store = open_feature_store(config.locations.work, profile=config.profile)
    times = pd.to_datetime(shown_us_B, unit="us", utc=True)
    retrieved = store.historical(pd.DataFrame({"user_id": users_B, EVENT_TIME: times}), service="ranker_v1")
    days = [d for d in validated_days(storage) if d <= day]
    num_clicks = 0
    for domain, names in COLUMNS.items():
        log, _ = read_clicks(storage, domain, days)
        start_B, stop_B = log.window(
            users_B, before_us_B=shown_us_B, since_us_B=THE_BEGINNING_US, length=config.features.sequence_length
        )
        _require_equal(retrieved, log, start_B, stop_B, names=names, domain=domain)
        num_clicks += int((stop_B - start_B).sum())
    return SequencesCompared(day, len(users_B), int(clicked_B.sum()), num_clicks)


def _require_equal(
    retrieved: pd.DataFrame, log: ClickLog, start_B: Int64s, stop_B: Int64s, *, names: tuple[str, str], domain: Domain
) -> None:
    for values, name in zip((log.item_ids_C, log.clicked_us_C), names, strict=True):
        column = retrieved[name].to_list()
        for row, (start, stop) in enumerate(zip(start_B.tolist(), stop_B.tolist(), strict=True)):
            found = np.asarray(column[row] if isinstance(column[row], list | np.ndarray) else (), np.int64)
            if not np.array_equal(found, values[start:stop]):
                raise DataError(
                    f"{name} in the feature store: {found.tolist()}",
                    expected=f"{values[start:stop].tolist()}, the slice of the {domain.name.lower()} clicks",
                    where=f"user {retrieved['user_id'][row]}, impression at {retrieved[EVENT_TIME][row]}",
                    remedy="run build_features for the day again; if it stays, the store and training disagree",
                )
