"""`storyrec serving ...`: what those on call ask of the model server."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from storyrec.config import load_config
from storyrec.terminal import ConfigOption, print_json

serving_app = typer.Typer(help="Look into the model server's answers.", no_args_is_help=True)


@serving_app.callback()
def _group() -> None:
    """Keeps `skew` a command of its own while it is the only one."""


@serving_app.command("skew")
def skew(
    answers: Annotated[Path, typer.Argument(metavar="ANSWERS", help="Folder of the answer log, or one of its days.")],
    config: ConfigOption = None,
) -> None:
    """Compare the sequences that the server read with the offline store, row by row; exit code 2 if any differs."""
    from storyrec.features.catalog import read_catalog
    from storyrec.features.partitions import work_folder
    from storyrec.features.repository import feature_repo
    from storyrec.serving.skew import check_skew

    features = work_folder(load_config(config).locations.work) / "features"
    found = check_skew(answers, catalog=read_catalog(feature_repo(), features=features), now=datetime.now(UTC))
    print_json(found)
    if found.different:
        raise typer.Exit(2)
