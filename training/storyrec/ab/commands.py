"""`storyrec ab ...`: online tests, planned, analyzed and simulated."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

ab_app = typer.Typer(help="Is the treatment better online? Plan a test and analyze its logs.", no_args_is_help=True)

OutcomesArgument = Annotated[
    Path, typer.Argument(metavar="OUTCOMES", help="Parquet file or folder: what users were shown and did.")
]
ShareOption = Annotated[
    float, typer.Option("--treatment-share", min=0.01, max=0.99, help="Share of the users planned for the treatment.")
]
TruthArgument = Annotated[
    Path, typer.Argument(metavar="TRUTH", help="Folder that `storyrec simulate` kept its truth in.")
]
SharpnessOption = Annotated[
    float, typer.Option("--sharpness", min=0, help="How much the treatment knows of the truth; 0: an A/A test.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of all that is drawn.")]


@ab_app.command()
def analyze(
    exposures: Annotated[
        Path, typer.Argument(metavar="EXPOSURES", help="Parquet file or folder: who met the test in which arm.")
    ],
    outcomes: OutcomesArgument,
    before: Annotated[
        Path | None,
        typer.Option("--before", help="Outcomes from before the test; they narrow the intervals.", show_default=False),
    ] = None,
    treatment_share: ShareOption = 0.5,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("var/online-test"),
) -> None:
    """Say whether the treatment is better, how sure that is, and whether the test may be trusted."""
    from storyrec.ab.analyze import analyze
    from storyrec.ab.report import PAGE, print_analysis, write_analysis

    found = analyze(exposures, outcomes, before=before, treatment_share=treatment_share)
    write_analysis(found, out)
    print_analysis(found, console=Console(highlight=False, markup=False))
    typer.echo(str(out / PAGE))


@ab_app.command()
def plan(
    outcomes: OutcomesArgument,
    lift: Annotated[float, typer.Option("--lift", min=-0.99, help="Relative difference to find, such as 0.02.")],
    power: Annotated[float, typer.Option("--power", min=0.05, max=0.999, help="Probability to find it.")] = 0.8,
    treatment_share: ShareOption = 0.5,
) -> None:
    """Say how many users or days a test needs, from a log without a test."""
    from storyrec.ab.power import plan
    from storyrec.ab.report import print_plan

    planned = plan(outcomes, lift=lift, power=power, treatment_share=treatment_share)
    print_plan(planned, lift=lift, power=power, console=Console(highlight=False, markup=False))


@ab_app.command()
def simulate(
    truth: TruthArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder to write the logs into.")],
    sharpness: SharpnessOption = 0.1,
    seed: SeedOption = 7,
) -> None:
    """Write the logs of a test whose effect is known, from a simulated marketplace's truth."""
    import numpy as np

    from storyrec.ab.simulate import draw_test, make_world, write_test

    world = make_world(truth, sharpness=sharpness, seed=seed)
    write_test(world, draw_test(world, rng=np.random.default_rng([seed, 1])), out)
    for name, lift in world.lifts.items():
        typer.echo(f"{name}: true lift {lift:+.2%}")
    typer.echo(str(out))


@ab_app.command()
def trials(
    truth: TruthArgument,
    sharpness: SharpnessOption = 0.1,
    repetitions: Annotated[int, typer.Option("--repetitions", min=1, help="How many tests to draw.")] = 500,
    seed: SeedOption = 7,
) -> None:
    """Draw many tests whose effect is known: how often are the intervals right?"""
    from storyrec.ab.report import print_trials
    from storyrec.ab.simulate import make_world
    from storyrec.ab.trials import run_trials

    found = run_trials(make_world(truth, sharpness=sharpness, seed=seed), repetitions=repetitions, seed=seed)
    print_trials(found, console=Console(highlight=False, markup=False))
