"""`storyrec features ...`: what other teams and those on call ask of the feature store."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from storyrec.config import load_config, parse_day
from storyrec.terminal import ConfigOption, DayOption, print_json, table_console

features_app = typer.Typer(help="Look into the feature store.", no_args_is_help=True)


@features_app.command("compare")
def compare(
    day: DayOption,
    rows: Annotated[int, typer.Option(help="How many impressions to compare.")] = 5_000,
    config: ConfigOption = None,
) -> None:
    """Compare the training sequences with the store's historical retrieval, row by row."""
    from storyrec.features.compare import compare_sequences

    print_json(compare_sequences(load_config(config), day=parse_day(day), num_rows=rows))


@features_app.command("get")
def get(
    entity: Annotated[str, typer.Argument(metavar="KIND", help="user, story or product.")],
    key: Annotated[str, typer.Argument(metavar="ID", help="Its id.")],
    service: Annotated[
        str | None, typer.Option(help="Only what this service gives; none: all of the entity.", show_default=False)
    ] = None,
    feature: Annotated[str | None, typer.Option(help="Only this feature.", show_default=False)] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model-version", help="What this model says of an item, or the current one.", show_default=False
        ),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Show what is online of a user, story or product, with its event time and age."""
    from storyrec.features.lookup import look_up, print_found

    now = datetime.now(UTC)
    found = look_up(load_config(config), entity=entity, key=key, service=service, feature=feature, now=now, model=model)
    print_found(found, now=now, console=Console(highlight=False, markup=False, soft_wrap=True))


@features_app.command("push")
def push(
    clicks: Annotated[
        Path, typer.Argument(metavar="CLICKS", help="Parquet or JSON: user_id, story_id or product_id, clicked_at.")
    ],
    config: ConfigOption = None,
) -> None:
    """Put clicks into the online sequences at once, before the day's logs bring them."""
    from storyrec.features.push import push_clicks

    print_json(push_clicks(load_config(config), clicks=clicks))


@features_app.command("reconcile")
def reconcile(
    day: DayOption,
    repair: Annotated[bool, typer.Option("--repair", help="Rewrite what differs.")] = False,
    config: ConfigOption = None,
) -> None:
    """Compare the online sequences with the logs up to the end of a day, user by user."""
    from storyrec.features.reconcile import print_differences, reconcile_sequences

    print_differences(
        reconcile_sequences(load_config(config), day=parse_day(day), repair=repair),
        console=Console(highlight=False, markup=False, soft_wrap=True),
    )


@features_app.command("join")
def join(
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="Parquet: ids, event_timestamp, whatever else.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Parquet file to write, a new one.")],
    service: Annotated[str, typer.Option(help="Feature service, see docs/feature-catalog.md.")],
    config: ConfigOption = None,
) -> None:
    """Give labels the features that were known at their moments: a training set."""
    from storyrec.features.catalog import read_catalog
    from storyrec.features.join import join_labels
    from storyrec.features.partitions import work_folder
    from storyrec.features.repository import feature_repo

    features = work_folder(load_config(config).locations.work) / "features"
    catalog = read_catalog(feature_repo(), features=features)
    print_json(join_labels(labels, out, service=service, catalog=catalog, now=datetime.now(UTC)))


@features_app.command("catalog")
def catalog() -> None:
    """Write docs/feature-catalog.md: every entity, view and service of feature_repo/definitions.py."""
    from storyrec.features.catalog import write_catalog
    from storyrec.features.repository import feature_repo

    typer.echo(str(write_catalog(feature_repo())))


@features_app.command("check")
def check() -> None:
    """Refuse definitions that break a released schema, or that are not released."""
    from storyrec.features.repository import feature_repo
    from storyrec.features.schemas import check_schemas

    kept = check_schemas(feature_repo())
    typer.echo(f"{len(kept.views)} views and {len(kept.services)} services are as they were released")


@features_app.command("release")
def release() -> None:
    """Promise what is new in the definitions: it goes into feature_repo/schemas.json."""
    from storyrec.features.repository import feature_repo
    from storyrec.features.schemas import release_schemas

    new = release_schemas(feature_repo())
    typer.echo(f"released: {', '.join(new)}" if new else "nothing is new")


@features_app.command("retire")
def retire(name: Annotated[str, typer.Argument(metavar="NAME", help="View or service.")]) -> None:
    """Take back the promise of a view or service whose definition is removed, for good.

    The next step that opens the store takes it out of the registry, with its values online.
    """
    from storyrec.features.repository import feature_repo
    from storyrec.features.schemas import retire_schema

    retire_schema(feature_repo(), name)
    typer.echo(
        f"'{name}' is retired; no definition may use this name again, the next step takes it out of the registry"
    )


@features_app.command("neighbours")
def neighbours(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="product, story or user.")],
    key: Annotated[int, typer.Argument(metavar="ID", help="Its id.")],
    top: Annotated[int, typer.Option(help="How many stories to show.", min=1)] = 10,
    exact: Annotated[bool, typer.Option("--exact", help="Compare all stories.")] = False,
    version: Annotated[
        str | None,
        typer.Option("--model-version", help="A published model; none: the newest.", show_default=False),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Show the stories near a product, near a story, or near what a user clicked lately."""
    from storyrec.features.near import find_nearby, print_nearby

    found = find_nearby(load_config(config), kind=kind, key=key, top_k=top, exact=exact, version=version)
    print_nearby(found, console=Console(highlight=False, markup=False))


@features_app.command("retire-model")
def retire_model(
    version: Annotated[str, typer.Argument(metavar="VERSION", help="A model that was published before.")],
    even_if_read: Annotated[
        bool, typer.Option("--even-if-read", help="Also where somebody read its items in the last two days.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Take the items of a model offline that nobody asks for any more, and remove its index."""
    from storyrec.features.publish import retire_model

    retire_model(load_config(config), version=version, even_if_read=even_if_read)
    typer.echo(f"model {version} is not online any more")


@features_app.command("models")
def models(config: ConfigOption = None) -> None:
    """Show which models' items are online, and which one answers a reader who names none."""
    from storyrec.features.store import open_feature_store

    settings = load_config(config)
    found = open_feature_store(settings.locations.work, profile=settings.profile).online_models()
    if not found.versions:
        typer.echo("no model is online; publish-features brings the champion")
    for version in found.versions:
        typer.echo(f"{version}{'  current' if version == found.current else ''}")


@features_app.command("freshness")
def freshness(
    day: Annotated[
        str | None,
        typer.Option("--day", help="Of a run that comes late: judge as of the day after.", show_default=False),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Compare the age of the served features with their promises; a broken one ends with exit code 2."""
    from storyrec.features.freshness import measure_freshness, print_freshness, require_kept

    found = measure_freshness(load_config(config), day=parse_day(day) if day else None)
    print_freshness(found, console=table_console())
    require_kept(found)


@features_app.command("drift")
def drift(day: DayOption, config: ConfigOption = None) -> None:
    """Compare a day's features with the trailing days; a drift ends with exit code 2."""
    from storyrec.features.drift import measure_drift, print_drift, require_stable

    report = measure_drift(load_config(config), day=parse_day(day))
    print_drift(report, console=table_console())
    require_stable(report)


@features_app.command("serve")
def serve(config: ConfigOption = None) -> None:
    """Answer lookups and take pushes over HTTP, as Feast's server does, until stopped."""
    from storyrec.features.server import serve_features

    serve_features(load_config(config))
