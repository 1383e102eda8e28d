"""The registry's pointer: which bundle is the champion, which the canary, what was before, and who changed it why.

champion.json, format 2. Format 1, which had neither canary nor changes, is still read; its next change writes format 2.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date
from typing import Any, Literal

FORMAT = 2

Action = Literal["deploy", "promote", "rollback", "canary", "withdraw"]


@dataclass(frozen=True)
class Champion:
    """A bundle that is or was deployed.

    Attributes:
        version: of the bundle.
        day: the day whose run trained it.
        deployed_at: when the pointer was switched to it, ISO 8601, UTC.
    """

    version: str
    day: date
    deployed_at: str


@dataclass(frozen=True)
class Canary(Champion):
    """A bundle that is tried beside the champion.

    Attributes:
        share: of the users whom it answers, 0 <= share < 1; 0: nobody, it scores the champion's requests unseen.
        since: when it got this share, ISO 8601, UTC.
    """

    share: float
    since: str


@dataclass(frozen=True)
class Change:
    """One change of the pointer.

    Attributes:
        at: ISO 8601, UTC.
        by: who: user and machine.
        action: what was done.
        version: the bundle that it made champion or canary, or withdrew.
        why: for people.
        blessing: SHA-256 of the bundle's verdict.json; None: it has none, as before there was a gate to ask.
    """

    at: str
    by: str
    action: Action
    version: str
    why: str
    blessing: str | None


@dataclass(frozen=True)
class Pointer:
    """What champion.json says.

    Attributes:
        champion: the deployed bundle.
        canary: the bundle that is tried beside it; None: none is.
        history: the champions before it, oldest first.
        withdrawn: champions that were rolled back and canaries that failed, oldest first.
        changes: every change of the pointer, oldest first.
    """

    champion: Champion
    canary: Canary | None = None
    history: tuple[Champion, ...] = ()
    withdrawn: tuple[Champion, ...] = ()
    changes: tuple[Change, ...] = ()

    @property
    def previous(self) -> Champion | None:
        """The champion that a rollback would deploy again."""
        return self.history[-1] if self.history else None

    def crown(self, champion: Champion, change: Change) -> "Pointer":
        """The pointer with another champion; a canary that becomes it is no canary any more."""
        canary = None if self.canary is not None and self.canary.version == champion.version else self.canary
        history = (*self.history, self.champion)
        return replace(self, champion=champion, canary=canary, history=history, changes=(*self.changes, change))

    def forgive(self, version: str) -> "Pointer":
        """The pointer without a bundle among the withdrawn: a person says that it may serve."""
        return replace(self, withdrawn=tuple(earlier for earlier in self.withdrawn if earlier.version != version))

    def to_json(self) -> bytes:
        """The bytes of champion.json."""
        previous = self.previous
        content = {
            "format": FORMAT,
            **_champion_json(self.champion),
            "canary": _champion_json(self.canary) | {"share": self.canary.share} if self.canary else None,
            "previous": _champion_json(previous) if previous else None,
            "history": [_champion_json(champion) for champion in self.history],
            "withdrawn": [_champion_json(champion) for champion in self.withdrawn],
            "changes": [asdict(change) for change in self.changes],
        }
        return json.dumps(content, indent=2, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Pointer":
        """The inverse of `to_json`; ValueError, KeyError or TypeError where it is no pointer."""
        read: dict[str, Any] = json.loads(content)
        found = read.get("format", 1)
        if found not in (1, FORMAT):
            raise ValueError(f"format {found}, this program reads formats 1 and {FORMAT}")
        later = {} if found == 1 else {"canary": read["canary"], "changes": read["changes"]}
        return cls(
            champion=_champion(read),
            canary=_canary(later["canary"]) if later.get("canary") else None,
            history=tuple(_champion(entry) for entry in read["history"]),
            withdrawn=tuple(_champion(entry) for entry in read["withdrawn"]),
            changes=tuple(Change(**entry) for entry in later.get("changes", ())),
        )


def _champion(entry: Mapping[str, Any]) -> Champion:
    return Champion(entry["version"], date.fromisoformat(entry["day"]), entry["deployed_at"])


def _canary(entry: Mapping[str, Any]) -> Canary:
    share, since = float(entry.get("share", 0)), entry.get("since", entry["deployed_at"])  # once it had neither
    return Canary(**asdict(_champion(entry)), share=share, since=since)


def _champion_json(champion: Champion) -> dict[str, Any]:
    return {name: str(value) for name, value in asdict(champion).items()}
