"""`storyrec registry`: what is deployed, what else there is, and changing that by hand."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from storyrec.config import load_config
from storyrec.errors import ModelError
from storyrec.storage import Storage
from storyrec.terminal import ConfigOption

registry_app = typer.Typer(help="Look at what is deployed; promote, go back, verify, tidy up.", no_args_is_help=True)

WhyOption = Annotated[str, typer.Option("--why", help="The reason, for those who read the history.")]


@registry_app.command("list")
def list_bundles(config: ConfigOption = None) -> None:
    """List the bundles: day, size, blessing, and what the pointer says of each."""
    from storyrec.registry_care import list_bundles

    held = list_bundles(_registry(config))
    table = Table(box=None, pad_edge=False)
    for name in ("version", "day", "size", "blessed", ""):
        table.add_column(name, justify="right" if name == "size" else "left", no_wrap=True)
    for bundle in held:
        blessed = {True: "yes", False: "no", None: "–"}[bundle.blessed]
        role = bundle.role if bundle.day else "not whole"
        table.add_row(bundle.version, str(bundle.day or "–"), _size(bundle.num_bytes), blessed, role)
    Console(highlight=False).print(table if held else "the registry holds no bundle")


@registry_app.command("show")
def show(config: ConfigOption = None) -> None:
    """Show the pointer: champion, canary, those before, and who changed it when and why."""
    from storyrec.registry import read_champion

    pointer = read_champion(_registry(config))
    typer.echo(pointer.to_json().decode() if pointer else "null")


@registry_app.command("promote")
def promote(
    version: Annotated[str, typer.Argument(metavar="VERSION", help="Of a bundle in the registry.")],
    why: WhyOption,
    config: ConfigOption = None,
) -> None:
    """Make a blessed bundle the champion at once; `storyrec rollout start` tries it on some users first."""
    from storyrec.promote import promote

    pointer = promote(_registry(config), version, why=why)
    typer.echo(f"champion {pointer.champion.version}, canary {pointer.canary.version if pointer.canary else 'none'}")


@registry_app.command("rollback")
def rollback(why: WhyOption = "", config: ConfigOption = None) -> None:
    """Make the champion before this one the champion again."""
    from storyrec.registry import rollback

    pointer = rollback(_registry(config), why=why)
    typer.echo(f"champion {pointer.champion.version}; withdrawn {pointer.withdrawn[-1].version}")


@registry_app.command("gc")
def collect_garbage(
    delete: Annotated[bool, typer.Option("--delete", help="Remove them; without it they are only shown.")] = False,
    config: ConfigOption = None,
) -> None:
    """Show, or remove, the bundles that no pointer, recent champion or recent push needs."""
    from storyrec.registry_care import find_garbage, remove_garbage

    registry, at = _registry(config), datetime.now(UTC)
    garbage = find_garbage(registry, at=at)
    if delete:
        garbage = remove_garbage(registry, garbage, at=at)
    for bundle in garbage:
        typer.echo(f"{bundle.version}  {_size(bundle.num_bytes):>10}  {bundle.why}")
    total = _size(sum(bundle.num_bytes for bundle in garbage))
    done = f"removed, {total} free" if delete else f"would go, {total}; --delete removes them"
    typer.echo(f"{len(garbage)} bundles {done}" if garbage else "nothing to remove")


@registry_app.command("verify")
def verify(config: ConfigOption = None) -> None:
    """Compare every file of every bundle with its sums; exit code 2 if anything is wrong."""
    from storyrec.registry_care import find_damage, list_bundles

    registry = _registry(config)
    problems = find_damage(registry)
    if problems:
        raise ModelError(
            "; ".join(problems.values()),
            expected="bundles whose files have the sums of their manifests",
            where=registry.url,
            remedy="roll back from a damaged champion, deploy a damaged day again; `gc` removes what is unfinished",
        )
    typer.echo(f"{len(list_bundles(registry))} bundles are whole")


def _registry(config: Path | None) -> Storage:
    from storyrec.registry import open_registry

    return open_registry(load_config(config).locations)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
