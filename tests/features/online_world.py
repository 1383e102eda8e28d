"""What is online of one user, and clicks pushed by hand."""

from datetime import datetime

import numpy as np
from feature_world import microseconds

from storyrec.config import Config
from storyrec.features.merge import Click, unpack_sequence
from storyrec.features.sequences import ClickLog
from storyrec.features.store import FeatureStoreClient, open_feature_store
from storyrec.schema import Domain

VIEW = "user_story_sequence"


def opened(config: Config) -> FeatureStoreClient:
    return open_feature_store(config.locations.work, profile=config.profile)


def clicks_of(client: FeatureStoreClient, user: int) -> list[Click]:
    """The user's story clicks online, as (epoch microseconds, item)."""
    return unpack_sequence(client.layout(VIEW), client.online_values(VIEW, [user])[0]).clicks


def push(client: FeatureStoreClient, *clicks: tuple[int, int, datetime]) -> None:
    """Push story clicks: user, item, when."""
    columns = zip(*((user, item, microseconds(when)) for user, item, when in clicks), strict=True)
    client.push(ClickLog.from_arrays(*(np.array(column) for column in columns)), domain=Domain.STORY)
