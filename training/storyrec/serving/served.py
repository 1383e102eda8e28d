"""The bundle that a server answers from, kept at what the champion pointer names.

A new champion is fetched, verified, indexed and queried beside the one that serves, then takes its place at
once; one that cannot be used is refused and the old one goes on. Several processes share one cache.
"""

import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from storyrec.bundle import Bundle, Int64s
from storyrec.errors import StoryrecError
from storyrec.features.neighbours import StoryIndex, build_index
from storyrec.pointer import Pointer
from storyrec.registry import fetch_bundle, read_champion
from storyrec.serving.metrics import BUNDLE_LOADS
from storyrec.serving.new_stories import NewStories, Stories, no_stories
from storyrec.serving.ranking import NO_CLICKS, cut_history, ranker_inputs
from storyrec.storage import Storage, one_writer

INDEX_SUFFIX = ".neighbours"
NUM_SCORED_FOR_NOBODY, NUM_KEPT_FOR_NOBODY = 50_000, 1_000

log = logging.getLogger(__name__)


class NotServed(Exception):
    """No bundle answers: none is deployed, or not the version that was asked for."""

    def __init__(self, message: str, *, is_ready: bool) -> None:
        super().__init__(message)
        self.is_ready = is_ready


@dataclass(frozen=True, eq=False)
class Served:
    """A bundle with what serving adds to it.

    Attributes:
        bundle: the model.
        index: of its stories, to retrieve candidates.
        stories: the bundle's and those appended since.
        for_nobody: story ids that the model finds best for a user without clicks, best first.
    """

    bundle: Bundle
    index: StoryIndex
    stories: Stories
    for_nobody: Int64s


class ServedBundle:
    """The bundle that serves; `refresh` replaces it when the pointer names another.

    Args:
        registry: where the pointer and the bundles are.
        cache: folder for copies of bundles and their indexes; other processes may use it too.
        follow_canary: serve the canary while there is one.
        new_stories: where stories are that the bundles do not know yet; None: nowhere.
    """

    def __init__(
        self,
        registry: Storage,
        cache: Path,
        *,
        follow_canary: bool = False,
        new_stories: NewStories | None = None,
    ) -> None:
        self.registry, self.cache, self.follow_canary, self.new_stories = registry, cache, follow_canary, new_stories
        self.served: Served | None = None
        self.refused: str | None = None  # why the deployed bundle is not the one that serves
        self.pointer: Pointer | None = None  # as it was last read

    @property
    def bundle(self) -> Bundle | None:
        """The bundle that serves."""
        return self.served.bundle if self.served else None

    def answering(self, version: str | None) -> Served:
        """What answers a request.

        Args:
            version: that the request asks for; None: whichever serves.

        Raises:
            NotServed: no bundle serves, or another version.
        """
        if self.served is None:
            raise NotServed(self.refused or "no champion is deployed yet", is_ready=False)
        if version not in (None, self.served.bundle.version):
            serving = self.served.bundle.version
            raise NotServed(f"model version '{version}' does not serve; {serving} does", is_ready=True)
        return self.served

    def refresh(self) -> bool:
        """Look at the pointer once; whether another bundle serves now.

        Raises:
            StoryrecError: the registry or the new bundle cannot be used; what serves goes on.
        """
        try:
            pointer = read_champion(self.registry)
        except StoryrecError as error:
            self.refused = error.found
            raise
        if pointer is None:
            return False
        self.pointer = pointer
        followed = (pointer.canary if self.follow_canary else None) or pointer.champion
        return self.take(followed.version)

    def take(self, version: str) -> bool:
        """Serve a bundle; whether it is another than before. Raises as `refresh`."""
        if self.bundle is not None and self.bundle.version == version:
            self.refused = None
            return False
        try:
            with one_writer(self.cache.with_name(f"{self.cache.name}.lock")):
                served = self._open(version)
                self._forget_all_but(version)
        except StoryrecError as error:
            self.refused = f"{version}: {error.found}"
            BUNDLE_LOADS.labels("refused").inc()
            raise
        self.served, self.refused = served, None
        BUNDLE_LOADS.labels("serves").inc()
        self.append_stories()
        return True

    def append_stories(self) -> None:
        """Look once for stories that are younger than the bundle that serves; they are scored from now on."""
        if self.new_stories is None or self.served is None:
            return
        try:
            table = self.new_stories.newer(self.served.bundle)
        except StoryrecError as error:
            log.error("new stories stay unknown: %s", error)
            return
        if table is not None:
            self.served = replace(self.served, stories=Stories(self.served.bundle.stories, table))

    def _open(self, version: str) -> Served:
        folder = self.cache / version
        try:
            bundle = Bundle.load(folder)  # from before a restart, or of another process
        except StoryrecError:
            fetch_bundle(self.registry, version, folder)
            bundle = Bundle.load(folder)
        bundle.probe()
        index_folder = self.cache / f"{version}{INDEX_SUFFIX}"
        try:
            index = StoryIndex.load(index_folder, version=version)
        except StoryrecError:
            build_index(_items(bundle), version=version, folder=index_folder)
            index = StoryIndex.load(index_folder, version=version)
        return Served(bundle, index, Stories(bundle.stories, no_stories(bundle)), _best_for_nobody(bundle))

    def _forget_all_but(self, version: str) -> None:
        # where a rollback or a withdrawal leads finds its bundle here
        named = (self.pointer.champion, self.pointer.previous) if self.pointer else ()
        versions = {version, *(champion.version for champion in named if champion is not None)}
        kept = versions | {f"{version}{INDEX_SUFFIX}" for version in versions}
        for other in self.cache.iterdir():
            if other.name not in kept:
                shutil.rmtree(other, ignore_errors=True)  # requests in flight keep the files open


def _items(bundle: Bundle) -> dict[str, np.ndarray]:
    stories, products = bundle.stories, bundle.products
    return {
        "story_ids": stories.ids_N,
        "story_match_vectors": stories.match_NM,
        "product_ids": products.ids_N,
        "product_match_vectors": products.match_NM,
    }


def _best_for_nobody(bundle: Bundle) -> Int64s:
    """The best of the stories, or of many spread evenly over them, for a user without clicks."""
    ids_N = bundle.stories.ids_N[1:]
    spread = np.linspace(0, len(ids_N) - 1, min(len(ids_N), NUM_SCORED_FOR_NOBODY)).astype(np.int64)
    ids_B = np.asarray(ids_N[spread])
    nobody = cut_history(bundle, story_clicks=NO_CLICKS, product_clicks=NO_CLICKS, now_us=0)
    scores_B = np.concatenate(
        [
            bundle.rank_candidates(
                **ranker_inputs(bundle, nobody, candidate_ids=ids_B[start : start + 4_096], stories=bundle.stories)
            )
            for start in range(0, len(ids_B), 4_096)
        ]
    )
    return ids_B[np.argsort(-scores_B, kind="stable")[:NUM_KEPT_FOR_NOBODY]]
