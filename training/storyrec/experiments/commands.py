"""`storyrec experiment ...`: the paper's tables on any data root, and what belongs to them."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from storyrec.config import Config, load_config
from storyrec.errors import ConfigError
from storyrec.terminal import ConfigOption

if TYPE_CHECKING:
    from storyrec.experiments.methods import Method
    from storyrec.experiments.run import Plan

experiment_app = typer.Typer(help="Is ADAPT better than X on my data? The paper's tables.", no_args_is_help=True)

DataArgument = Annotated[Path, typer.Argument(metavar="DATA", help="Data root of the log contract.")]
RootOption = Annotated[Path, typer.Option("--out", help="Folder of the experiments on this data; finished runs stay.")]
SeedsOption = Annotated[int, typer.Option("--seeds", min=1, help="Runs of every method.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Whose runs.")]
JobsOption = Annotated[int, typer.Option("--jobs", min=1, help="Processes at a time.")]
SmallOption = Annotated[bool, typer.Option("--small", help="One seed and short trainings: some ten minutes.")]
TunedOption = Annotated[
    Path | None,
    typer.Option("--tuned", help="tuned.toml of a search on this data; none: the package's.", show_default=False),
]
MethodsOption = Annotated[
    str, typer.Option("--methods", help="Only these, comma-separated; empty: all of the table.", show_default=False)
]

NUM_CORES = os.cpu_count() or 1
DEFAULT_ROOT = Path("var/experiments")
SMALL_SEEDS = 1
SMALL: dict[str, dict[str, int]] = {"aden": {"max_epochs": 2}, "dual": {"max_steps": 300}}


def compare(
    experiment: str, methods: "Sequence[Method]", *, data: Path, root: Path, config: Config, plan: "Plan"
) -> None:
    """Run the methods of a table and write its results and report."""
    from storyrec.data.dataset import Dataset
    from storyrec.experiments.prepare import describe, prepare
    from storyrec.experiments.references import score_references
    from storyrec.experiments.report import write_report
    from storyrec.experiments.results import Results
    from storyrec.experiments.run import run_methods

    prepared = prepare(config, data=data, root=root)
    runs = run_methods(methods, root=root, config=prepared.config, dataset=prepared.dataset, plan=plan)
    dataset = Dataset.load(prepared.dataset)
    results = Results(
        experiment=experiment,
        data={"name": str(data), **describe(dataset)},
        runs=tuple(runs),
        references=score_references(prepared.config, dataset),
        notes=("a small run: short trainings, not converged",) if plan.overrides else (),
    )
    write_report(results, root / experiment)
    typer.echo(f"{root / experiment / 'report.html'}")


def make_plan(*, seeds: int, jobs: int, small: bool, tuned: Path | None) -> "Plan":
    """The plan that the options ask for.

    Raises:
        ConfigError: the file of tuned settings is missing.
    """
    from storyrec.experiments.run import Plan
    from storyrec.experiments.tuning import TUNED

    if tuned is not None and not tuned.is_file():
        raise ConfigError(
            "the file of tuned settings is missing",
            expected="a tuned.toml that `storyrec experiment tune` wrote",
            where=str(tuned),
            remedy="name an existing file with --tuned",
        )
    return Plan(
        seeds=range(SMALL_SEEDS if small else seeds),
        num_jobs=jobs,
        overrides=SMALL if small else {},
        tuned=tuned or TUNED,
    )


def choose(methods: "Sequence[Method]", names: str) -> "Sequence[Method]":
    """The methods of these names, in the table's order.

    Raises:
        ConfigError: a name is none of theirs.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = [method.name for method in methods]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ConfigError(
            f"unknown method: {', '.join(unknown)}",
            expected=f"among {', '.join(known)}",
            where="--methods",
            remedy="correct the name",
        )
    return [method for method in methods if not wanted or method.name in wanted]


def add_table(name: str, *, help: str, methods: "Callable[[], Sequence[Method]]") -> None:
    """Add the command that compares the methods of a table."""

    @experiment_app.command(name, help=help)
    def command(
        data: DataArgument,
        out: RootOption = DEFAULT_ROOT,
        only: MethodsOption = "",
        seeds: SeedsOption = 5,
        jobs: JobsOption = NUM_CORES,
        small: SmallOption = False,
        tuned: TunedOption = None,
        config: ConfigOption = None,
    ) -> None:
        compare(
            name,
            choose(methods(), only),
            data=data,
            root=out / "small" if small else out,
            config=load_config(config),
            plan=make_plan(seeds=seeds, jobs=jobs, small=small, tuned=tuned),
        )


def _table4() -> "Sequence[Method]":
    from storyrec.experiments.methods import TABLE_4

    return TABLE_4


def _table6() -> "Sequence[Method]":
    from storyrec.experiments.methods import TABLE_6

    return TABLE_6


def _beyond() -> "Sequence[Method]":
    from storyrec.experiments.methods import BEYOND, ORIGINALS, TABLE_4

    bases = [method for method in TABLE_4 if method.name in {original.tuned_as for original in ORIGINALS}]
    return [*BEYOND, *bases, *ORIGINALS]


add_table("table4", help="Table IV: every method of the paper.", methods=_table4)
add_table("table6", help="Table VI: ADAPT without some of its parts.", methods=_table6)
add_table(
    "beyond",
    help="Beyond the paper: switches of ADAPT, and DIN, DIEN and BST as their own papers have them.",
    methods=_beyond,
)


@experiment_app.command()
def table5(
    data: DataArgument,
    out: RootOption = DEFAULT_ROOT,
    methods: MethodsOption = "",
    config: ConfigOption = None,
) -> None:
    """Table V: floating-point operations per instance of every method, with items extracted once and not."""
    from storyrec.experiments.flops import run_table5
    from storyrec.experiments.methods import TABLE_4
    from storyrec.experiments.prepare import prepare
    from storyrec.experiments.report import write_report

    chosen = choose(TABLE_4, methods)
    prepared = prepare(load_config(config), data=data, root=out)
    write_report(run_table5(chosen, config=prepared.config, dataset=prepared.dataset), out / "table5")
    typer.echo(f"{out / 'table5' / 'report.html'}")


@experiment_app.command()
def table7(
    data: DataArgument, out: RootOption = DEFAULT_ROOT, seeds: SeedsOption = 5, config: ConfigOption = None
) -> None:
    """Table VII: which extractors find stories for products best; needs table6 and beyond."""
    from storyrec.data.dataset import Dataset
    from storyrec.experiments.prepare import prepare
    from storyrec.experiments.report import write_report
    from storyrec.experiments.table7 import run_table7

    prepared = prepare(load_config(config), data=data, root=out)
    results = run_table7(out, config=prepared.config, data=Dataset.load(prepared.dataset), seeds=range(seeds))
    write_report(results, out / "table7")
    typer.echo(f"{out / 'table7' / 'report.html'}")


@experiment_app.command()
def placebo(
    data: DataArgument,
    out: RootOption = DEFAULT_ROOT,
    seeds: SeedsOption = 5,
    jobs: JobsOption = NUM_CORES,
    small: SmallOption = False,
    tuned: TunedOption = None,
    config: ConfigOption = None,
) -> None:
    """Worlds in which a gain must vanish: without shared interests, without a gap, shuffled mounts, permuted clicks."""
    from storyrec.experiments.placebo import run_placebos
    from storyrec.experiments.report import write_report

    root = out / "small" if small else out
    plan = make_plan(seeds=seeds, jobs=jobs, small=small, tuned=tuned)
    results = run_placebos(load_config(config), data=data, root=root, plan=plan)
    write_report(results, root / "placebo")
    typer.echo(f"{root / 'placebo' / 'report.html'}")


@experiment_app.command()
def srd_sample(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the sample of SRD-1's pairs.")],
    vocabulary: Annotated[Path, typer.Option("--vocabulary", help="Word pieces, one a line.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    seeds: SeedsOption = 5,
) -> None:
    """Statistics of the published sample, and DUAL trained on one half and asked for the other."""
    from storyrec.experiments.srd_sample import run_srd_sample

    run_srd_sample(source, out=out, seeds=range(seeds), vocabulary=vocabulary)
    typer.echo(f"{out / 'srd_sample.md'}")


@experiment_app.command()
def report(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="results.csv or results.json of an experiment.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
) -> None:
    """Make an experiment's tables and plots again from its results."""
    from storyrec.experiments.report import remake_report

    remake_report(file, out=out)
    typer.echo(f"{out / 'report.html'}")


@experiment_app.command()
def tune(
    data: DataArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder of the search; finished trials stay.")],
    methods: MethodsOption = "",
    trials: Annotated[int, typer.Option("--trials", min=1, help="Trainings of every method.")] = 8,
    jobs: JobsOption = NUM_CORES,
    config: ConfigOption = None,
) -> None:
    """Search every method's learning rate, L2, epochs and initial scale on validation; writes OUT/tuned.toml."""
    from storyrec.experiments.methods import TABLE_4, WITHOUT_DUAL
    from storyrec.experiments.prepare import prepare
    from storyrec.experiments.run import run_searches
    from storyrec.experiments.tuning import write_tuned

    chosen = choose([*TABLE_4, WITHOUT_DUAL], methods)
    prepared = prepare(load_config(config), data=data, root=out)
    run_searches(chosen, root=out, config=prepared.config, dataset=prepared.dataset, num_trials=trials, num_jobs=jobs)
    write_tuned(chosen, root=out, out=out / "tuned.toml")
    typer.echo(f"{out / 'tuned.toml'}")


@experiment_app.command()
def failures(
    out: RootOption = DEFAULT_ROOT,
    seed: SeedOption = 0,
    count: Annotated[int, typer.Option("--count", min=1, help="Failures of either kind.")] = 10,
) -> None:
    """Table IX: the worst failures of ADAPT, and what each domain alone said; needs table6."""
    from storyrec.experiments.failures import PAGE, write_failures
    from storyrec.experiments.prepare import prepared_dataset

    write_failures(out, data=prepared_dataset(out), seed=seed, out=out / "failures", count=count)
    typer.echo(f"{out / 'failures' / PAGE}")


@experiment_app.command()
def rating_sheet(out: RootOption = DEFAULT_ROOT, seed: SeedOption = 0, config: ConfigOption = None) -> None:
    """Table VIII: a blinded sheet on which volunteers rate stories for products; needs table6."""
    from storyrec.experiments.rating_sheet import KEY, SHEET, write_rating_sheet

    folder = out / "rating-sheet"
    write_rating_sheet(out, config=load_config(config), seed=seed, out=folder)
    typer.echo(f"{folder / SHEET}\n{folder / KEY} (keep it from the volunteers)")


@experiment_app.command()
def ratings(
    sheets: Annotated[list[Path], typer.Argument(metavar="CSV...", help="Files that the sheet saved.")],
    key: Annotated[Path, typer.Option("--key", help="key.json of that sheet.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; replaced whole.")],
) -> None:
    """Table VIII: average filled sheets, unblind and compare them."""
    from storyrec.experiments.ratings import evaluate_ratings, markdown_table, write_ratings

    found = evaluate_ratings(sheets, key=key)
    write_ratings(found, out)
    typer.echo(markdown_table(found))
