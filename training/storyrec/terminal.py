"""What all commands share: the options that come again and again, and how a result is printed."""

import dataclasses
import json
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel
from rich.console import Console

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="TOML file of settings.", envvar="STORYREC_CONFIG", show_default=False)
]
LOG_WIDTH = 160
DayOption = Annotated[str, typer.Option("--day", help="Partition key, YYYY-MM-DD.")]


def table_console() -> Console:
    """Where wide tables go: a terminal has a width of its own; a log or a pipe has none, and rich would cut at 80."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else LOG_WIDTH)


def print_json(result: object) -> None:
    """Print a result as JSON."""
    if isinstance(result, BaseModel):
        result = result.model_dump(mode="json")
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        result = dataclasses.asdict(result)
    convert: Callable[[object], str] = lambda value: value.isoformat() if isinstance(value, date) else str(value)  # noqa: E731
    typer.echo(json.dumps(result, indent=2, default=convert, ensure_ascii=False))
