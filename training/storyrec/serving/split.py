"""Which bundle answers whom: the champion everybody, but for a share of the users the canary.

The same users always, as long as the canary is the same: a hash of the user and the canary's version decides, so a
wider share keeps those of the narrower one. With a share of 0 the canary is a shadow: it scores what the champion
answered, and nobody sees it.
"""

import logging
import threading
from dataclasses import dataclass
from hashlib import md5
from typing import Literal

from storyrec.bundle import Bundle
from storyrec.errors import StoryrecError
from storyrec.promote import withdraw_canary
from storyrec.rollout.checks import Limits, judge_canary
from storyrec.rollout.traffic import Traffic
from storyrec.serving.metrics import CANARY_SHARE, CANARY_WITHDRAWN
from storyrec.serving.served import Served, ServedBundle

Role = Literal["champion", "canary", "shadow"]

_BITS = 32

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Chosen:
    """What answers a request, and as what."""

    served: Served
    role: Role


@dataclass(frozen=True, eq=False)
class Tried:
    """A canary that answers.

    Attributes:
        served: its bundle.
        share: of the users; 0: a shadow.
    """

    served: Served
    share: float


class Split:
    """The bundles that serve, kept at what the pointer names.

    Args:
        champion: what answers whom the canary does not.
        canary: kept at the pointer's canary; None: every server of this kind answers with one bundle.
        limits: what the canary must keep to in this server's own traffic, or it is withdrawn.
    """

    def __init__(
        self, champion: ServedBundle, canary: ServedBundle | None = None, *, limits: Limits | None = None
    ) -> None:
        self.champion, self._canary, self._limits = champion, canary, limits
        self.tried: Tried | None = None
        self.traffic = Traffic()
        self._given_up = ""  # the canary that failed here, whatever the pointer says

    @property
    def bundle(self) -> Bundle | None:
        """The champion that serves."""
        return self.champion.bundle

    @property
    def refused(self) -> str | None:
        """Why the deployed champion is not the one that serves."""
        return self.champion.refused

    def choose(self, version: str | None, *, user_id: int | None) -> Chosen:
        """What answers a request.

        Args:
            version: that the request asks for; None: whichever is the user's.
            user_id: whose request it is; None: nobody's, the champion answers.

        Raises:
            NotServed: no bundle serves, or another version.
        """
        tried = self.tried
        if tried is not None and tried.share > 0:
            canary = tried.served.bundle.version
            is_hers = user_id is not None and is_in_canary(user_id, canary=canary, share=tried.share)
            if version == canary or (version is None and is_hers):
                return Chosen(tried.served, "canary")
        return Chosen(self.champion.answering(version), "champion")

    def answering(self, version: str | None) -> Served:
        """What answers requests for a version, or of nobody; raises as `choose`."""
        return self.choose(version, user_id=None).served

    def shadow(self) -> Served | None:
        """What scores unseen."""
        tried = self.tried
        return tried.served if tried is not None and tried.share == 0 else None

    def refresh(self) -> bool:
        """Look at the pointer once; whether another champion serves now.

        Raises:
            StoryrecError: the registry or a new bundle cannot be used; what serves goes on.
        """
        try:
            return self.champion.refresh()
        finally:
            self._refresh_canary()

    def watch(self, stop: threading.Event, *, poll_seconds: float) -> None:
        """Refresh, and judge the canary, until told to stop; errors are logged once."""
        said = ""
        while not stop.wait(poll_seconds):
            try:
                if self.refresh():
                    log.warning("serving champion %s", self.bundle.version if self.bundle else "")
                else:
                    self.champion.append_stories()
                self.judge()
                said = ""
            except Exception as error:  # a watcher that ends would leave this champion serving for ever
                if said != (said := str(error)):
                    log.error("what serves stays: %s", error)

    def judge(self) -> None:
        """Stop asking a canary that failed in this server's traffic, and withdraw it for all servers.

        Raises:
            StoryrecError: the registry cannot be written; here the canary is not asked any more.
        """
        tried = self.tried
        if tried is None or self._limits is None:
            return
        rules = judge_canary(*self.traffic.arms(), limits=self._limits)
        failed = [rule.reason for rule in rules if not rule.passed]
        if not failed:
            return
        version, why = tried.served.bundle.version, "; ".join(failed)
        self.tried = None
        self._given_up = version
        CANARY_WITHDRAWN.inc()
        log.error("the canary %s is withdrawn: %s", version, why)
        withdraw_canary(self.champion.registry, version, why=why)

    def _refresh_canary(self) -> None:
        pointer = self.champion.pointer
        wanted = pointer.canary if pointer is not None and self._canary is not None else None
        if wanted is None or self._canary is None or wanted.version == self._given_up:
            self.tried = None
        else:
            try:
                self._canary.take(wanted.version)
            except StoryrecError as error:
                log.error("the canary %s is not tried: %s", wanted.version, error)
                self.tried = None
            else:
                served = self._canary.served
                before = self.tried
                if before is None or before.served is not served or before.share != wanted.share:
                    self.traffic = Traffic()
                    assert served is not None
                    self.tried = Tried(served, wanted.share)
                self._canary.append_stories()
        CANARY_SHARE.set(self.tried.share if self.tried else 0)


def is_in_canary(user_id: int, *, canary: str, share: float) -> bool:
    """Whether a user is among those whom the canary answers."""
    return int(md5(f"{canary}:{user_id}".encode()).hexdigest()[:8], 16) < round(share * 2**_BITS)
