"""Every error a user can cause or meet, in one tree.

    StoryrecError            exit code 2, one message, no traceback
    ├── ConfigError          a setting is unknown, of the wrong type or contradictory
    ├── DataError            logs are missing, unreadable or break the log contract
    │   ├── MissingPartition     a day that should be there is not
    │   ├── SchemaMismatch       a column is missing or has another type
    │   └── DayStopped           a day broke a rule of level *stop the day*
    ├── StorageError         a folder, disk or S3 endpoint refuses or fails
    │   └── Conflict             somebody else changed the object first
    ├── ModelError           a bundle, checkpoint or model cannot be used
    └── PlatformError        Airflow, Kubeflow Pipelines, Feast or a port is not usable

A message says what was found, what was expected, where, and what to do.
"""

EXIT_CODE = 2


class StoryrecError(Exception):
    """Base of all errors that end in one clear message and exit code 2."""

    def __init__(self, found: str, *, expected: str = "", where: str = "", remedy: str = "") -> None:
        self.found, self.expected, self.where, self.remedy = found, expected, where, remedy
        parts = [found]
        if expected:
            parts.append(f"expected: {expected}")
        if where:
            parts.append(f"where: {where}")
        if remedy:
            parts.append(f"what to do: {remedy}")
        super().__init__("\n  ".join(parts))


class ConfigError(StoryrecError):
    """A setting is unknown, of the wrong type or contradictory."""


class DataError(StoryrecError):
    """Logs are missing, unreadable or break the log contract."""


class MissingPartition(DataError):
    """A day that should be there is not."""


class SchemaMismatch(DataError):
    """A column is missing or has another type than the log contract says."""


class DayStopped(DataError):
    """A day broke a rule of level *stop the day*; nothing of it goes on."""


class StorageError(StoryrecError):
    """A folder, disk or S3 endpoint refuses or fails."""


class Conflict(StorageError):
    """A conditional write lost: somebody else changed the object first."""


class ModelError(StoryrecError):
    """A bundle, checkpoint or model cannot be used."""


class PlatformError(StoryrecError):
    """Airflow, Kubeflow Pipelines, Feast or a port is not usable."""
