"""What came of some days, on one screen: logs, figures, verdict, what is deployed, what it recommends."""

import json
import math
from collections.abc import Sequence
from datetime import date
from typing import Any

from rich.console import Console
from rich.table import Table

from storyrec.config import Config
from storyrec.errors import StoryrecError
from storyrec.logs.reports import read_report
from storyrec.storage import Storage, open_storage

NUM_RECOMMENDED = 5


def print_summary(config: Config, *, days: Sequence[date], console: Console) -> None:
    """Sum up days that went through all DAGs.

    Raises:
        StorageError: a record of a day is gone.
    """
    work = open_storage(config.locations.work, s3_endpoint=config.locations.s3_endpoint)
    for day in days:
        _print_day(work, day, config=config, console=console)
    _print_examples(config, console)
    last = days[-1]
    report = read_report(work, last)
    console.print(f"Report     {work.url}/runs/dt={last}/report.html", soft_wrap=True)
    if report is not None and report.data_docs:
        console.print(f"Data docs  {work.url}/{report.data_docs}/index.html", soft_wrap=True)


def _print_day(work: Storage, day: date, *, config: Config, console: Console) -> None:
    console.rule(f"[bold]{day}", align="left")
    report = read_report(work, day)
    if report is not None:
        rows = sum(table.rows for table in report.tables.values())
        quarantined = {
            f"{name}.{rule}": count
            for name, table in report.tables.items()
            for rule, count in table.quarantined.items()
            if count
        }
        console.print(f"Logs: {rows:,} rows validated, {sum(quarantined.values()):,} quarantined")
        for rule, count in quarantined.items():
            console.print(f"  [dim]{count:>6,}  {rule}[/]")
    evaluation, verdict, outcome = (
        json.loads(work.read(f"runs/dt={day}/{name}.json")) for name in ("evaluation", "verdict", "outcome")
    )
    console.print(_figures(evaluation, top_k=config.evaluation.top_k))
    word = "[bold green]blessed[/]" if verdict["blessed"] else "[bold red]not blessed[/]"
    console.print(f"Challenger {verdict['challenger']} is {word}:")
    for rule in verdict["rules"]:
        console.print(f"  {'[green]✓[/]' if rule['passed'] else '[red]✗[/]'} {rule['reason']}", soft_wrap=True)
    for warning in evaluation.get("warnings", ()):
        console.print(f"  [yellow]![/] {warning}", soft_wrap=True)
    console.print(f"{outcome['status'].capitalize()}; champion: {outcome['champion'] or 'none'}\n")


def _figures(evaluation: dict[str, Any], *, top_k: int) -> Table:
    table = Table(title=f"{evaluation['challenger']['metrics']['num_users']:,} users of the held-out days")
    table.title_justify = "left"
    table.add_column("")
    names = {
        "per-user AUC": "per_user_auc",
        f"HR@{top_k}": f"hr_at_{top_k}",
        f"NDCG@{top_k}": f"ndcg_at_{top_k}",
    }
    for label in names:
        table.add_column(label, justify="right")
    for model in ("challenger", "champion", "popularity", "oracle"):
        if evaluation.get(model):
            figures = evaluation[model]["metrics"]
            table.add_row(model, *(_number(figures.get(name)) for name in names.values()))
    return table


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"


def _print_examples(config: Config, console: Console) -> None:
    from storyrec.examples import example_ids, match_product, print_matches, print_ranking, rank_for_user

    console.rule("[bold]What the deployed model recommends", align="left")
    try:
        user_id, product_id = example_ids(config)
        print_ranking(rank_for_user(config, user_id=user_id, top=NUM_RECOMMENDED), console=console)
        print_matches(match_product(config, product_id=product_id, top=NUM_RECOMMENDED), console=console)
    except StoryrecError as error:
        console.print(f"no example: {error}", markup=False)
