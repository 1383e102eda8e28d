"""The bundle that a server answers from, kept at what the champion pointer names."""

import logging
import shutil
import threading
from pathlib import Path

from storyrec.bundle import Bundle
from storyrec.errors import StoryrecError
from storyrec.registry import fetch_bundle, read_champion
from storyrec.storage import Storage

log = logging.getLogger(__name__)


class ServedBundle:
    """The bundle that serves; `refresh` replaces it when the pointer names another."""

    def __init__(self, registry: Storage, cache: Path, *, follow_canary: bool = False) -> None:
        self.registry, self.cache, self.follow_canary = registry, cache, follow_canary
        self.bundle: Bundle | None = None
        self.refused: str | None = None  # why the deployed bundle is not the one that serves

    def refresh(self) -> bool:
        """Look at the pointer once; whether another bundle serves now.

        Raises:
            StoryrecError: the registry or the new bundle cannot be used; what serves goes on.
        """
        pointer = read_champion(self.registry)
        if pointer is None:
            return False
        followed = (pointer.canary if self.follow_canary else None) or pointer.champion
        version = followed.version
        if self.bundle is not None and self.bundle.version == version:
            self.refused = None
            return False
        folder = self.cache / version
        try:
            try:
                bundle = Bundle.load(folder)  # from before a restart
            except StoryrecError:
                fetch_bundle(self.registry, version, folder)
                bundle = Bundle.load(folder)
            bundle.probe()
        except StoryrecError as error:
            self.refused = f"{version}: {error.found}"
            raise
        self.bundle, self.refused = bundle, None
        for other in self.cache.iterdir():
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)  # requests in flight keep the files open
        return True

    def watch(self, stop: threading.Event, *, poll_seconds: float) -> None:
        """Refresh until told to stop; errors are logged once."""
        said = ""
        while not stop.wait(poll_seconds):
            try:
                if self.refresh():
                    log.warning("serving champion %s", self.bundle.version if self.bundle else "")
                said = ""
            except StoryrecError as error:
                if said != (said := str(error)):
                    log.error("the champion that serves stays: %s", error)
