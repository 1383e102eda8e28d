"""Stories that were published after the bundle was trained: read from the logs, embedded, appended while serving."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from storyrec.bundle import Bundle, Int64s, ItemTable
from storyrec.errors import DataError
from storyrec.logs.partitions import list_files, read_days
from storyrec.schema import COVER_WIDTH
from storyrec.serving.extractor import embed_stories
from storyrec.storage import Stamp, Storage

TABLE = "stories"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Stories:
    """All stories that a server can score.

    Attributes:
        known: the bundle's.
        appended: younger ones; a story is never in both.
    """

    known: ItemTable
    appended: ItemTable

    def vectors(self, item_ids: npt.ArrayLike) -> Floats:
        """What the ranker reads of each id, the padding's row for an unknown one."""
        rows = self.known.rows(item_ids)
        vectors = np.asarray(self.known.vectors_ND[rows])
        if len(self.appended.ids_N) > 1:
            is_missing = rows == 0
            vectors[is_missing] = self.appended.vectors(np.asarray(item_ids, np.int64)[is_missing])
        return vectors

    def match_vectors(self, story_ids: Int64s) -> Floats:
        """Matching vectors of those of the stories that are known or appended, in any order."""
        rows = ((table, table.rows(story_ids)) for table in (self.known, self.appended))
        return np.concatenate([table.match_NM[rows_N[rows_N > 0]] for table, rows_N in rows])


def no_stories(bundle: Bundle) -> ItemTable:
    """A table of padding alone."""
    return ItemTable(bundle.stories.ids_N[:1], bundle.stories.vectors_ND[:1], bundle.stories.match_NM[:1])


class NewStories:
    """A root of the log contract whose stories are appended; only files of days after the bundle's are read."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._seen: tuple[str, dict[str, Stamp]] | None = None

    def newer(self, bundle: Bundle) -> ItemTable | None:
        """The stories that are younger than a bundle; None where the files are those of the last look.

        The last row of a story counts. A cover that is only named by a URI is no cover here.

        Raises:
            DataError: a file cannot be read, or a cover has another width.
            ModelError: the bundle's extractors cannot be read.
        """
        files = {day: keys for day, keys in list_files(self.storage, TABLE).items() if day > bundle.day}
        stamps = self.storage.stamps(f"{TABLE}/")
        seen = bundle.version, {key: stamps[key] for keys in files.values() for key in keys if key in stamps}
        if seen == self._seen:
            return None
        read = read_days(self.storage, TABLE, files, columns=["story_id", "title", "cover"], files=files)
        for problem in read.problems.values():
            raise problem
        story_ids_N = read.table["story_id"].to_numpy()
        ids_N, from_the_end_N = np.unique(story_ids_N[::-1], return_index=True)
        is_new_N = (bundle.stories.rows(ids_N) == 0) & (ids_N > 0)
        rows = read.table.take(len(story_ids_N) - 1 - from_the_end_N[is_new_N])
        table = embed_stories(
            bundle,
            story_ids_N=ids_N[is_new_N],
            titles=pc.fill_null(rows["title"], "").to_pylist(),
            visual_raw_NV=_covers(rows["cover"].to_pylist(), where=self.storage.url),
        )
        self._seen = seen
        return table


def _covers(covers: list[list[float] | None], *, where: str) -> Floats:
    visual_raw_NV = np.zeros((len(covers), COVER_WIDTH), np.float32)
    for row, cover in enumerate(covers):
        if cover:
            if len(cover) != COVER_WIDTH:
                raise DataError(
                    f"a cover of {len(cover)} numbers",
                    expected=str(COVER_WIDTH),
                    where=f"{where}/{TABLE}",
                    remedy="validate the logs, and name the folder of the validated ones",
                )
            visual_raw_NV[row] = cover
    return visual_raw_NV
