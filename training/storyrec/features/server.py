"""Feast's own HTTP server over the feature store: lookups and pushes for whoever speaks JSON.

In the cluster profile it asks for a token (OpenID Connect) and lets its roles do what `definitions.py` permits.
"""

import os
import subprocess
import sys

from storyrec.config import Config
from storyrec.errors import ConfigError, PlatformError
from storyrec.features.partitions import work_folder
from storyrec.features.repository import feature_repo, settings_file
from storyrec.features.store import open_feature_store
from storyrec.serving.server import listen

DISCOVERY = "STORYREC_OIDC_DISCOVERY"
"""Environment variable: where the provider of tokens describes itself."""

START = (
    "from storyrec.features.repository import light_import\n"
    "with light_import():\n"
    "    from feast.cli.cli import cli\n"
    "    import feast.feature_server\n"
    "cli()"
)
"""Feast's own command line, started in half the time."""


def serve_features(config: Config) -> None:
    """Serve until stopped.

    Args:
        config: settings; feature_server, locations.work, profile.

    Raises:
        ConfigError: the cluster profile without an OpenID provider.
        PlatformError: the port is taken, a store does not answer, or the server ended by itself.
    """
    settings, repo = config.feature_server, feature_repo()
    if config.profile == "cluster" and not os.environ.get(DISCOVERY):
        raise ConfigError(
            f"not set: {DISCOVERY}",
            expected="the provider's URL that ends in /.well-known/openid-configuration",
            where=str(settings_file(repo, profile=config.profile)),
            remedy="set this environment variable: the server of a cluster lets nobody in without a token",
        )
    open_feature_store(config.locations.work, profile=config.profile)  # registers the definitions
    listen(settings.host, settings.port).close()
    work = work_folder(config.locations.work)
    local = work / "feast/feature_store.yaml"
    file = local if config.profile == "local" else settings_file(repo, profile=config.profile)
    command = [sys.executable, "-c", START, "-c", str(repo), "-f", str(file), "serve", "--no-access-log"]
    options = {"--host": settings.host, "--port": settings.port, "--workers": settings.num_workers}
    command += [str(part) for option in options.items() for part in option]
    environment = {**os.environ, "STORYREC_FEATURES": str(work / "features"), "FEAST_USAGE": "False"}
    print(f"storyrec: http://{settings.host}:{settings.port} serves features", flush=True)
    try:
        code = subprocess.run(command, env=environment, check=False).returncode
    except KeyboardInterrupt:
        return
    if code > 0:
        raise PlatformError(
            f"Feast's server ended by itself (exit code {code})",
            where=f"{settings.host}:{settings.port}",
            remedy="read its messages above",
        )
