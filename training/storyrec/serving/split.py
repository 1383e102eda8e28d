"""Which bundle answers whom: the champion everybody, but for a share of the users the canary.

The same users always, as long as the canary is the same: a hash of the user and the canary's version decides, so a
wider share keeps those of the narrower one. With a share of 0 the canary is a shadow: it scores what the champion
answered, and nobody sees it.
"""

import contextlib
import logging
import threading
from dataclasses import dataclass
from hashlib import md5
from typing import Literal

from storyrec.bundle import Bundle
from storyrec.errors import ModelError, StoryrecError
from storyrec.pointer import Canary
from storyrec.promote import withdraw_canary
from storyrec.rollout.checks import CanaryLimits, judge_canary
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


@dataclass
class _Failed:
    """A canary that this server does not ask any more, whatever the pointer says.

    Attributes:
        canary: as the pointer named it; made the canary again, it is another.
        why: for people.
        is_told: whether the registry knows.
    """

    canary: Canary
    why: str
    is_told: bool = False


class Split:
    """The bundles that serve, kept at what the pointer names.

    Args:
        champion: what answers whom the canary does not.
        canary: kept at the pointer's canary; None: every server of this kind answers with one bundle.
        limits: what the canary must keep to in this server's own traffic, or it is withdrawn.
    """

    def __init__(
        self, champion: ServedBundle, canary: ServedBundle | None = None, *, limits: CanaryLimits | None = None
    ) -> None:
        self.champion, self._canary, self._limits = champion, canary, limits
        self.tried: Tried | None = None
        self.traffic: Traffic | None = None  # beside the canary that is tried
        self._failed: _Failed | None = None

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
            is_other = self.champion.refresh()
        finally:
            self._refresh_canary()
            CANARY_SHARE.set(self.tried.share if self.tried else 0)
        if is_other:
            log.warning("serving champion %s", self.bundle.version if self.bundle else "")
        return is_other

    def watch(self, stop: threading.Event, *, poll_seconds: float) -> None:
        """Refresh, look for new stories, and judge the canary, until told to stop; errors are logged once."""
        said = ""
        while not stop.wait(poll_seconds):
            errors = []
            for look in (self.refresh, self.champion.append_stories, self.judge):
                try:
                    look()
                except Exception as error:  # a watcher that ends would leave this champion serving for ever
                    errors.append(str(error))
            if errors and said != "; ".join(errors):
                log.error("what serves stays: %s", "; ".join(errors))
            said = "; ".join(errors)

    def judge(self) -> None:
        """Stop asking a canary that failed in this server's traffic, and withdraw it for all servers.

        Raises:
            StoryrecError: the registry cannot be told; the next call tells it.
        """
        tried, pointer = self.tried, self.champion.pointer
        if tried is not None and self.traffic is not None and self._limits is not None:
            rules = judge_canary(*self.traffic.arms(), limits=self._limits, is_shadow=tried.share == 0)
            failed = [rule.reason for rule in rules if not rule.passed]
            canary = pointer.canary if pointer else None
            if failed and canary is not None and canary.version == tried.served.bundle.version:
                self._give_up(canary, "; ".join(failed))
        if self._failed is not None and not self._failed.is_told:
            with contextlib.suppress(ModelError):  # somebody took it away meanwhile
                withdraw_canary(self.champion.registry, self._failed.canary.version, why=self._failed.why)
            self._failed.is_told = True

    def _give_up(self, canary: Canary, why: str) -> None:
        self.tried = None
        self._failed = _Failed(canary, why)
        CANARY_WITHDRAWN.inc()
        log.error("the canary %s is withdrawn: %s", canary.version, why)

    def _refresh_canary(self) -> None:
        slot, pointer = self._canary, self.champion.pointer
        wanted = pointer.canary if pointer is not None else None
        if slot is None or wanted is None or self.champion.bundle is None:
            self.tried = self.traffic = None
            if slot is not None:
                slot.served = None  # a bundle takes its memory
            return
        if self._failed is not None and _same_try(self._failed.canary, wanted):
            self.tried = None
            return
        try:
            slot.take(wanted.version)
        except ModelError as error:
            self._give_up(wanted, f"it cannot be loaded: {error.found}")
            return
        except StoryrecError:
            self.tried = None
            raise
        slot.append_stories()
        assert slot.served is not None
        before, champion = self.tried, self.champion.bundle.version
        is_same_share = before is not None and before.share == wanted.share
        if self.traffic is None or not is_same_share or not self.traffic.is_of(champion, wanted.version):
            self.traffic = Traffic(champion=champion, canary=wanted.version)
        self.tried = Tried(slot.served, wanted.share)


def _same_try(before: Canary, now: Canary) -> bool:
    return (before.version, before.deployed_at) == (now.version, now.deployed_at)


def is_in_canary(user_id: int, *, canary: str, share: float) -> bool:
    """Whether a user is among those whom the canary answers."""
    return int(md5(f"{canary}:{user_id}".encode()).hexdigest()[:8], 16) < round(share * 2**_BITS)
