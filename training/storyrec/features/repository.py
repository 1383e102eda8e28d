"""The feature repository: where it is, what it declares, and Feast's settings in it."""

import contextlib
import os
import re
import runpy
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from storyrec.errors import ConfigError, PlatformError


@contextlib.contextmanager
def light_import() -> Iterator[None]:
    """Import Feast in half the time: typeguard rewrites no class, and torch stays out, which few of its users need."""
    import typeguard

    typechecked, has_torch = typeguard.typechecked, "torch" in sys.modules
    typeguard.typechecked = lambda target: target  # type: ignore[assignment]
    if not has_torch:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        typeguard.typechecked = typechecked
        if not has_torch:
            del sys.modules["torch"]


with light_import():
    from feast import Entity, FeatureService, FeatureView
    from feast.permissions.permission import Permission

FEATURE_REPO = "STORYREC_FEATURE_REPO"
"""Environment variable: where `feature_repo/` is; default: beside the source root."""


@dataclass(frozen=True)
class Definitions:
    """What a feature repository declares, as Feast's objects."""

    entities: list[Entity]
    views: list[FeatureView]
    services: list[FeatureService]
    permissions: list[Permission]


def feature_repo() -> Path:
    """The folder of the definitions."""
    return Path(os.environ.get(FEATURE_REPO) or Path(__file__).resolve().parents[3] / "feature_repo")


def load_definitions(repo: Path, *, features: Path) -> Definitions:
    """What definitions.py of a feature repository declares, for the offline partitions below `features`.

    Raises:
        ConfigError: its definitions are wrong.
        PlatformError: there is no feature repository.
    """
    path = repo / "definitions.py"
    if not path.is_file():
        raise _no_repository(path, "no such file")
    with _environment("STORYREC_FEATURES", str(features)):
        try:
            names = runpy.run_path(str(path))
        except Exception as error:  # whatever Python or Feast finds wrong
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
            raise ConfigError(
                f"the definitions cannot be read: {type(error).__name__}: {error}",
                expected="Python that declares entities, views, services and permissions of Feast",
                where=f"{path}, line {lines[-1]}" if lines else str(path),
                remedy="correct this line, then run `storyrec features check`",
            ) from error
    values = names.values()
    return Definitions(
        [value for value in values if isinstance(value, Entity)],
        [value for value in values if isinstance(value, FeatureView)],
        [value for value in values if isinstance(value, FeatureService)],
        [value for value in values if isinstance(value, Permission)],
    )


def settings_file(repo: Path, *, profile: Literal["local", "cluster"]) -> Path:
    """What Feast reads in a profile."""
    return repo / ("feature_store.yaml" if profile == "local" else "feature_store.cluster.yaml")


def read_settings(path: Path) -> dict[str, Any]:
    """Feast's settings with the environment filled in, but for `auth`: who reaches the stores needs no token.

    Raises:
        ConfigError: an environment variable of the cluster is not set.
        PlatformError: there is no such file.
    """
    try:
        settings: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _no_repository(path, str(error.strerror)) from error
    settings.pop("auth", None)
    text = os.path.expandvars(yaml.safe_dump(settings, sort_keys=False))
    missing = re.findall(r"\$\{(\w+)\}", text)
    if missing:
        raise ConfigError(
            f"not set: {', '.join(missing)}",
            expected="the places of the cluster's online store and registry",
            where=str(path),
            remedy="set these environment variables",
        )
    filled: dict[str, Any] = yaml.safe_load(text)
    return filled


def _no_repository(path: Path, reason: str) -> PlatformError:
    return PlatformError(
        f"the feature repository cannot be read ({reason})",
        expected="feature_repo/ of the source checkout",
        where=str(path),
        remedy=f"name it in the environment variable {FEATURE_REPO}",
    )


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
