"""Errors that the feature server tells to whoever asks, with a status of their own."""

import json
from typing import ClassVar

from feast.errors import FeastError

from storyrec.errors import PlatformError


class Refusal(FeastError):
    """Base of errors that Feast's server answers with a status of theirs."""

    status: ClassVar[int]

    def http_status_code(self) -> int:
        return self.status

    def to_error_detail(self) -> str:
        """The error as Feast's client reads it, by a class that a client without storyrec has."""
        return json.dumps({"module": FeastError.__module__, "class": FeastError.__name__, "message": str(self)})


class StoreSilent(PlatformError, Refusal):
    """The online store does not answer; the same request may be sent again."""

    status = 503
