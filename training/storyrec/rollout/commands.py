"""`storyrec rollout`: try a blessed bundle on a share of the users before it becomes the champion."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from storyrec.config import load_config
from storyrec.errors import ModelError
from storyrec.registry import open_registry
from storyrec.terminal import ConfigOption, print_json

rollout_app = typer.Typer(
    help="Try a blessed bundle on a share of the users; widen the share, or withdraw it.", no_args_is_help=True
)

VersionArgument = Annotated[str, typer.Argument(metavar="VERSION", help="Of a bundle in the registry.")]
WhyOption = Annotated[str, typer.Option("--why", help="The reason, for those who read the history.")]


@rollout_app.command("start")
def start(
    version: VersionArgument,
    why: WhyOption,
    share: Annotated[
        float | None,
        typer.Option(min=0, max=0.99, help="Of the users; 0: unseen by them. [default: the first of rollout.shares]"),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Make a blessed bundle the canary."""
    from storyrec.promote import set_canary

    settings = load_config(config)
    share = settings.rollout.shares[0] if share is None else share
    pointer = set_canary(open_registry(settings.locations), version, share=share, why=why)
    assert pointer.canary is not None
    typer.echo(f"champion {pointer.champion.version}, canary {version} for {pointer.canary.share:.0%} of the users")


@rollout_app.command("advance")
def advance(config: ConfigOption = None) -> None:
    """Take one step: wait, widen the share, or make the canary champion; withdraw it and exit with 2 if it fails."""
    from storyrec.rollout.checks import canary_limits
    from storyrec.rollout.walk import advance

    settings = load_config(config)
    walk = settings.rollout
    registry = open_registry(settings.locations)
    step = advance(
        registry,
        Path(settings.serving.answers) if settings.serving.answers else None,
        shares=walk.shares,
        min_minutes=walk.min_minutes,
        limits=canary_limits(walk),
        at=datetime.now(UTC),
    )
    print_json(asdict(step))
    if step.action == "withdraw":
        raise ModelError(
            f"the canary {step.version} was withdrawn at {step.share:.0%} of the users: {step.why}",
            expected="a canary that serves as the champion does",
            where=registry.url,
            remedy="the champion serves everybody; look at the answers of this version, then deploy a mended one",
        )


@rollout_app.command("stop")
def stop(version: VersionArgument, why: WhyOption, config: ConfigOption = None) -> None:
    """Withdraw the canary; no rerun of its day makes it one again."""
    from storyrec.promote import withdraw_canary

    pointer = withdraw_canary(open_registry(load_config(config).locations), version, why=why)
    typer.echo(f"champion {pointer.champion.version}, canary none; withdrawn {version}")


@rollout_app.command("manifest")
def manifest(
    deployment: Annotated[Path, typer.Option(help="Manifests whose Deployment says how a server runs.")] = Path(
        "deploy/serving.yaml"
    ),
    config: ConfigOption = None,
) -> None:
    """Print KServe's InferenceService for what the registry's pointer says now; for `kubectl apply -f -`."""
    from storyrec.registry import read_champion
    from storyrec.rollout.manifest import inference_service

    registry = open_registry(load_config(config).locations)
    pointer = read_champion(registry)
    if pointer is None:
        raise ModelError("nothing is deployed", where=registry.url, remedy="deploy a model first")
    typer.echo(inference_service(pointer, deployment=deployment), nl=False)
