"""The command line: every step of the pipeline, alone, on the locations of the settings.

A user's mistake ends in one message and exit code 2; nothing here knows more than names.
"""

import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from storyrec.ab.commands import ab_app
from storyrec.config import Config, Follow, load_config, parse_day, update_config
from storyrec.errors import EXIT_CODE, ConfigError, StoryrecError
from storyrec.experiments.commands import experiment_app
from storyrec.features.commands import features_app
from storyrec.registry_commands import registry_app
from storyrec.rollout.commands import rollout_app
from storyrec.serving.commands import serving_app
from storyrec.terminal import ConfigOption, DayOption, print_json

if TYPE_CHECKING:
    from storyrec.storage import Storage

app = typer.Typer(
    name="storyrec",
    help="Predict which story a user will click, from what they clicked among stories and products.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
import_app = typer.Typer(help="Turn other formats into the log contract.", no_args_is_help=True)
quarantine_app = typer.Typer(help="Look at rejected rows and put corrected ones back.", no_args_is_help=True)
app.add_typer(ab_app, name="ab")
app.add_typer(experiment_app, name="experiment")
app.add_typer(import_app, name="import")
app.add_typer(quarantine_app, name="quarantine")
app.add_typer(registry_app, name="registry")
app.add_typer(rollout_app, name="rollout")
app.add_typer(features_app, name="features")
app.add_typer(serving_app, name="serving")

OutOption = Annotated[Path, typer.Option("--out", help="Folder to write; replaced whole.")]
DatasetOption = Annotated[Path, typer.Option("--dataset", help="Folder that build-dataset wrote.")]
ChampionOption = Annotated[
    Path | None, typer.Option("--champion", help="Bundle folder of the champion.", show_default=False)
]


def main() -> None:
    """Run the command line; a StoryrecError becomes its message and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except StoryrecError as error:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(f"storyrec: {error}")
        sys.exit(EXIT_CODE)
    except OSError as error:
        if error.errno is None:
            raise
        place = f"\n  where: {error.filename}" if error.filename else ""
        message = f"storyrec: {error.strerror}{place}\n  what to do: mend this, then run the same command again"
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(message)
        sys.exit(EXIT_CODE)


@app.command()
def settings(config: ConfigOption = None) -> None:
    """Print every setting with its value, as the TOML that --config takes."""
    import tomli_w

    typer.echo(tomli_w.dumps(load_config(config).model_dump(mode="json")))


# --- logs -------------------------------------------------------------------------------------


@app.command()
def simulate(config: ConfigOption = None) -> None:
    """Write a synthetic marketplace's logs, and the truth about its clicks beside them."""
    from storyrec.run import make_marketplace

    settings = load_config(config)
    if not settings.locations.truth:
        raise ConfigError(
            "there is no place for the true click probabilities",
            expected="a folder apart from the logs",
            where="locations.truth",
            remedy="set it in the settings",
        )
    started = time.monotonic()
    rows = make_marketplace(settings)
    if not rows:
        typer.echo(f"{settings.locations.logs} already holds this marketplace")
        return
    seconds = time.monotonic() - started
    listed = ", ".join(f"{count:,} {table}" for table, count in rows.items())
    rate = rows["impressions"] / seconds
    typer.echo(f"{settings.locations.logs}: {listed} in {seconds:.0f} s, {rate:,.0f} impressions/s")


@import_app.command()
def amazon(
    source_folder: Annotated[
        Path, typer.Argument(metavar="SRC", help="Folder of reviews_*.json.gz and meta_*.json.gz.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Data root to write.")],
    target: Annotated[str, typer.Option(help="Category whose items become stories.")],
    source: Annotated[str, typer.Option(help="Category whose items become products.")],
    config: ConfigOption = None,
) -> None:
    """Turn two categories of Amazon reviews into the log contract."""
    from storyrec.logs.amazon import import_amazon

    settings = load_config(config).amazon
    print_json(
        import_amazon(
            source=source_folder,
            out=out,
            target=target,
            source_category=source,
            negatives_per_click=settings.negatives_per_click,
            seed=settings.seed,
        )
    )


@import_app.command()
def srd(
    source: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of SRD-1_*_data.txt or SRD-2_*_data.txt, plain or .gz.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Data root to write.")],
    vocabulary: Annotated[
        Path | None, typer.Option(help="BERT vocabulary of the token ids; none: DIR/vocab.txt.", show_default=False)
    ] = None,
) -> None:
    """Turn the published SRD-1 or SRD-2 files into the log contract."""
    from storyrec.logs.srd import import_srd

    print_json(import_srd(source=source, out=out, vocabulary=vocabulary))


@app.command()
def catch_up(day: DayOption, config: ConfigOption = None) -> None:
    """Validate the days before DAY that have not been validated yet."""
    from storyrec.logs.validate import catch_up

    print_json(catch_up(load_config(config), day=parse_day(day)))


@app.command()
def validate_logs(day: DayOption, config: ConfigOption = None) -> None:
    """Judge a day's logs: good rows go on, bad rows to quarantine, a bad day stops."""
    from storyrec.logs.validate import validate_logs

    print_json(validate_logs(load_config(config), day=parse_day(day)))


@quarantine_app.command("list")
def quarantine_list(
    day: Annotated[str | None, typer.Option("--day", help="Only this day.", show_default=False)] = None,
    config: ConfigOption = None,
) -> None:
    """Show how many rows each rule rejected, with examples."""
    from storyrec.features.covers import list_broken_covers
    from storyrec.logs.quarantine import list_quarantine
    from storyrec.storage import open_storage

    locations = load_config(config).locations
    work = open_storage(locations.work, s3_endpoint=locations.s3_endpoint)
    held = parse_day(day) if day else None
    found = [*list_quarantine(work, day=held), *list_broken_covers(work, day=held)]
    for rows in found:
        example = ", ".join(f"{name}={value}" for name, value in rows.examples[0].items() if value is not None)
        typer.echo(f"{rows.day}  {rows.table}.{rows.rule}: {rows.count:,} rows; expected: {rows.says}")
        typer.echo(f"            for example {example}")
    if not found:
        typer.echo("nothing is quarantined")


@quarantine_app.command("replay")
def quarantine_replay(
    day: DayOption,
    table: Annotated[str, typer.Option(help="Table of the log contract.")],
    corrected: Annotated[
        Path | None,
        typer.Option(
            help="Parquet file of corrected rows; without it the rejected rows are judged again.", show_default=False
        ),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Judge corrected rows by the same rules and put the good ones back into their day."""
    from storyrec.logs.quarantine import replay

    print_json(replay(load_config(config), day=parse_day(day), table=table, corrected=corrected))


@app.command()
def analyze(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Data root of the log contract, a folder.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("var/analysis"),
    config: ConfigOption = None,
) -> None:
    """Measure logs as the paper's Section II measures its own: sequences, titles, sources, cold start."""
    from storyrec.analysis.analyze import analyze
    from storyrec.analysis.report import PAGE, print_analysis, write_analysis

    settings = load_config(config)
    found = analyze(
        data,
        history_days=settings.windows.history_days,
        sequence_length=settings.features.sequence_length,
        vocabulary_size=settings.features.vocabulary_size,
        min_word_count=settings.features.min_word_count,
        max_title_words=settings.features.max_title_words,
        seed=settings.aden.seed,
    )
    write_analysis(found, out)
    print_analysis(found, console=Console(highlight=False, markup=False))
    typer.echo(str(out / PAGE))


# --- features ---------------------------------------------------------------------------------


@app.command()
def build_features(day: DayOption, config: ConfigOption = None) -> None:
    """Write a day's click sequences as the feature store's offline source."""
    from storyrec.features.build import build_features

    print_json(build_features(load_config(config), day=parse_day(day)))


@app.command()
def materialize_features(day: DayOption, config: ConfigOption = None) -> None:
    """Put the sequences as they stand at the end of a day into the online store."""
    from storyrec.features.build import materialize_features

    print_json(materialize_features(load_config(config), day=parse_day(day)))


@app.command()
def embed_covers(day: DayOption, config: ConfigOption = None) -> None:
    """Turn the pictures of items without a cover vector into vectors, by the network of the settings."""
    from storyrec.features.embed import embed_covers

    done = embed_covers(load_config(config), day=parse_day(day))
    if done is None:
        typer.echo("covers.model names no network: items without a cover vector stay without")
    else:
        print_json(done)


@app.command()
def publish_features(
    day: Annotated[
        str | None, typer.Option("--day", help="Partition key, YYYY-MM-DD. [default: the newest published day]")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Publish the champion's item embeddings and the stories for products."""
    from storyrec.features.publish import follow_champion, publish_features

    settings = load_config(config)
    published = follow_champion(settings) if day is None else publish_features(settings, day=parse_day(day))
    if published is None:
        typer.echo("no day has been published yet: the first one needs --day")
    else:
        print_json(published)


# --- one training run -------------------------------------------------------------------------


@app.command()
def build_dataset(day: DayOption, out: OutOption, config: ConfigOption = None) -> None:
    """Turn validated logs into the arrays that training and evaluation read."""
    from storyrec.data.build import build_dataset

    build_dataset(load_config(config), day=parse_day(day), out=out)


@app.command()
def pretrain_dual(
    dataset: DatasetOption, out: OutOption, champion: ChampionOption = None, config: ConfigOption = None
) -> None:
    """Pre-train the extractors of both domains on (story, mounted product) pairs."""
    from storyrec.pretrain import pretrain_dual

    settings = load_config(config)
    pretrain_dual(settings, dataset=dataset, champion=champion, checkpoints=_checkpoints(settings), out=out)


@app.command()
def finetune_aden(
    dataset: DatasetOption,
    dual: Annotated[Path, typer.Option(help="Folder that pretrain-dual wrote.")],
    out: OutOption,
    champion: ChampionOption = None,
    config: ConfigOption = None,
) -> None:
    """Fine-tune the click-through network from the pre-trained extractors."""
    from storyrec.finetune import finetune_aden

    settings = load_config(config)
    finetune_aden(settings, dataset=dataset, dual=dual, champion=champion, checkpoints=_checkpoints(settings), out=out)


@app.command()
def pack_bundle(
    dataset: DatasetOption,
    dual: Annotated[Path, typer.Option(help="Folder that pretrain-dual wrote.")],
    aden: Annotated[Path, typer.Option(help="Folder that finetune-aden wrote.")],
    out: OutOption,
    config: ConfigOption = None,
) -> None:
    """Pack the trained model into a bundle: ONNX ranker, weights, item table, sums."""
    from storyrec.pack import pack_bundle

    pack_bundle(load_config(config), dataset=dataset, dual=dual, aden=aden, out=out)


@app.command()
def fetch_champion(day: DayOption, out: OutOption, config: ConfigOption = None) -> None:
    """Fetch the bundle that a day's challenger starts from and is judged against."""
    from storyrec.registry import fetch_champion

    found = fetch_champion(load_config(config), day=parse_day(day), out=out)
    typer.echo(found if found else "there is no champion before this day")


@app.command()
def evaluate_model(
    dataset: DatasetOption,
    bundle: Annotated[Path, typer.Option(help="Bundle folder of the challenger.")],
    out: OutOption,
    champion: ChampionOption = None,
    config: ConfigOption = None,
) -> None:
    """Judge challenger and champion on the same held-out impressions."""
    from storyrec.evaluate import evaluate_model

    evaluate_model(load_config(config), dataset=dataset, bundle=bundle, champion=champion, out=out)


@app.command()
def bless_model(
    evaluation: Annotated[Path, typer.Option(help="Folder that evaluate-model wrote.")],
    out: OutOption,
    config: ConfigOption = None,
) -> None:
    """Give the gate's verdict, with its reasons."""
    from storyrec.gate.bless import bless_model

    typer.echo("blessed" if bless_model(load_config(config), evaluation=evaluation, out=out) else "not blessed")


@app.command()
def deploy_model(
    bundle: Annotated[Path, typer.Option(help="Bundle folder of the challenger.")],
    evaluation: Annotated[Path, typer.Option(help="Folder that evaluate-model wrote.")],
    verdict: Annotated[Path, typer.Option(help="Folder that bless-model wrote.")],
    config: ConfigOption = None,
) -> None:
    """Make a blessed bundle the champion by switching the pointer."""
    from storyrec.deploy import deploy_model

    print_json(deploy_model(load_config(config), bundle=bundle, evaluation=evaluation, verdict=verdict))


@app.command()
def train_adapt(day: DayOption, config: ConfigOption = None) -> None:
    """Run a day's whole training pipeline under the local Kubeflow runner."""
    _components().run_local(load_config(config), parse_day(day))


@app.command()
def pipeline(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="YAML file to write.")], config: ConfigOption = None
) -> None:
    """Compile the training pipeline for a Kubeflow cluster."""
    _components().compile_pipeline(load_config(config), out)
    typer.echo(str(out))


# --- what is deployed -------------------------------------------------------------------------


@app.command()
def rank(
    user: Annotated[int, typer.Option(help="User id.")],
    top: Annotated[int, typer.Option(help="How many stories to show.")] = 10,
    config: ConfigOption = None,
) -> None:
    """Rank the newest stories for a user with the deployed model."""
    from storyrec.examples import print_ranking, rank_for_user

    print_ranking(rank_for_user(load_config(config), user_id=user, top=top), console=Console(highlight=False))


@app.command()
def match(
    product: Annotated[int, typer.Option(help="Product id.")],
    top: Annotated[int, typer.Option(help="How many stories to show.")] = 5,
    config: ConfigOption = None,
) -> None:
    """Show the stories that match a product best, by the deployed model."""
    from storyrec.examples import match_product, print_matches

    print_matches(match_product(load_config(config), product_id=product, top=top), console=Console(highlight=False))


@app.command()
def explain(
    out: OutOption,
    dataset: Annotated[
        Path | None,
        typer.Option("--dataset", help="Folder that build-dataset wrote; none: made again.", show_default=False),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Bundle folder; none: the deployed one.", show_default=False)
    ] = None,
    user: Annotated[int | None, typer.Option("--user", help="User id, with --story.", show_default=False)] = None,
    story: Annotated[int | None, typer.Option("--story", help="Story id, with --user.", show_default=False)] = None,
    impression: Annotated[
        int | None, typer.Option("--impression", help="Number of a held-out impression.", show_default=False)
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Show which past clicks the model attended to in one held-out impression."""
    from storyrec.explain import PAGE, explain

    settings = load_config(config)
    found = explain(
        settings, dataset=dataset, bundle=bundle, user_id=user, story_id=story, impression=impression, out=out
    )
    outcome = "clicked" if found.clicked else "not clicked"
    typer.echo(f"impression {found.impression}: {found.title}: {found.click_probability:.3f}, {outcome}")
    typer.echo(str(out / PAGE))


@app.command()
def serve(
    follow: Annotated[
        Follow | None, typer.Option(help="What to serve. [default: serving.follow]", show_default=False)
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Serve the champion, and the canary to its users; what is deployed next is picked up without a restart."""
    from storyrec.serving.server import serve

    settings = load_config(config)
    serve(settings if follow is None else update_config(settings, {"serving": {"follow": follow}}))


# --- the whole thing on one machine -----------------------------------------------------------


@app.command()
def run(
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Data root of the log contract; none: simulate one.", show_default=False),
    ] = None,
    days: Annotated[
        str, typer.Option("--days", help="Two partitions, comma-separated; empty: the last two that make sense.")
    ] = "",
    config: ConfigOption = None,
) -> None:
    """Run two days through the DAGs of a local Airflow and sum up what came of it."""
    from storyrec.run import run

    chosen = tuple(parse_day(day.strip()) for day in days.split(",")) if days else None
    run(load_config(config), data=data, days=chosen)


@app.command()
def up(config: ConfigOption = None) -> None:
    """Start the local Airflow and leave it running."""
    from storyrec.run import up

    up(load_config(config))


@app.command()
def down() -> None:
    """Stop the local Airflow with all its processes."""
    from storyrec.run import down

    down()


def _components() -> Any:
    """The pipeline of the source checkout: the wheel holds `storyrec` alone."""
    import importlib

    home = Path(__file__).parents[2]
    if not (home / "components" / "pipeline.py").is_file():
        raise ConfigError(
            "the Kubeflow components are not beside the package",
            expected="a source checkout",
            where=str(home),
            remedy="run this command from an editable installation of the checkout",
        )
    sys.path.insert(0, str(home))
    return importlib.import_module("components.pipeline")


def _checkpoints(config: Config) -> "Storage":
    from storyrec.storage import open_storage

    return open_storage(f"{config.locations.work}/checkpoints", s3_endpoint=config.locations.s3_endpoint)


if __name__ == "__main__":
    main()
