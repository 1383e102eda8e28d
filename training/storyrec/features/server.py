"""The feature store over HTTP: lookups and pushes for whoever speaks JSON, by Feast's server with faster lookups.

In the cluster profile it asks for a token (OpenID Connect) and lets its roles do what `definitions.py` permits.
"""

import os

from storyrec.config import Config
from storyrec.errors import ConfigError, PlatformError
from storyrec.features.partitions import work_folder
from storyrec.features.repository import feature_repo, light_import, settings_file
from storyrec.features.store import open_feature_store
from storyrec.serving.server import listen

TOKENS = ("STORYREC_OIDC_DISCOVERY", "STORYREC_OIDC_AUDIENCE")
"""Environment variables: where the provider of tokens describes itself, and which of its tokens are for this server."""


def serve_features(config: Config) -> None:
    """Serve until stopped.

    Args:
        config: settings; feature_server, locations.work, profile.

    Raises:
        ConfigError: the cluster profile without an OpenID provider and an audience.
        PlatformError: the port is taken, a store does not answer, or the server ended by itself.
    """
    settings, repo = config.feature_server, feature_repo()
    missing = [name for name in TOKENS if not os.environ.get(name)]
    if config.profile == "cluster" and missing:
        raise ConfigError(
            f"not set: {', '.join(missing)}",
            expected="the provider's URL that ends in /.well-known/openid-configuration; its tokens' audience",
            where=str(settings_file(repo, profile=config.profile)),
            remedy="set these environment variables: the server of a cluster lets nobody in without a token",
        )
    open_feature_store(config.locations.work, profile=config.profile)  # registers the definitions
    listen(settings.host, settings.port).close()
    local = work_folder(config.locations.work) / "feast/feature_store.yaml"
    file = local if config.profile == "local" else settings_file(repo, profile=config.profile)
    with light_import():
        from storyrec.features.workers import run_workers
    try:
        run_workers(repo, settings=file, host=settings.host, port=settings.port, num_workers=settings.num_workers)
    except SystemExit as end:  # so gunicorn ends, asked to or not
        if end.code:
            raise PlatformError(
                f"the server ended by itself (exit code {end.code})",
                where=f"{settings.host}:{settings.port}",
                remedy="read its messages above",
            ) from end
