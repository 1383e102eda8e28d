"""The rules as a Great Expectations contract: the only module that imports great_expectations.

It builds a suite per table from the same declaration as the row masks, runs a checkpoint on the pandas
engine and writes the data docs. A check that raised, or that counts other rows than the mask does, is
*broken*: something is wrong with the check, which says nothing about the data.
"""

import gc
import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from storyrec.logs.rows import Mask, Rows
from storyrec.logs.rules import QUARANTINED, RULES, DayFacts, DayRule, Expectation, RowRule

if TYPE_CHECKING:
    from great_expectations.core.expectation_validation_result import ExpectationValidationResult
    from great_expectations.data_context.data_context.ephemeral_data_context import EphemeralDataContext

Status = Literal["passed", "violated", "broken"]

MANY_ROWS = 1_000_000

_NULLABLE = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}


@dataclass(frozen=True)
class Judged:
    """A table's rows with the masks of its row rules; `facts` where day rules are to be judged too."""

    rows: Rows
    masks: Mapping[str, Mask]
    quarantined_B: Mask
    facts: DayFacts | None = None


@dataclass(frozen=True)
class Outcome:
    """What a check said: `count` broken rows, or 1 for a broken day rule; `note` says why it is broken."""

    status: Status
    count: int = 0
    note: str = ""


def check_contract(
    tables: Mapping[str, Judged], *, name: str, run_time: datetime, docs: Path
) -> dict[str, dict[str, Outcome]]:
    """Run every table's suite and write the data docs.

    Args:
        tables: the judged tables by name.
        name: what the data docs call this run, such as "dt=2026-03-09".
        run_time: the time the data docs show; the day itself, so that a rerun makes the same pages.
        docs: an empty folder that gets the site, with index.html.

    Returns:
        Per table and rule: passed, violated or broken. Rules that could not be judged are left out.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    context = _context(docs)
    outcomes: dict[str, dict[str, Outcome]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GX on its own use of marshmallow and pandas
        for table, judged in tables.items():
            outcomes[table] = _check_table(context, table, judged, name=name, run_time=run_time)
            context.data_sources.delete(table)  # with its frame
            if judged.rows.table.num_rows > MANY_ROWS:
                gc.collect()  # what held the frame holds itself
        context.build_data_docs(site_names=["docs"])
    return outcomes


def _check_table(
    context: "EphemeralDataContext", table: str, judged: Judged, *, name: str, run_time: datetime
) -> dict[str, Outcome]:
    import great_expectations as gx
    from great_expectations.core.run_identifier import RunIdentifier

    checks = judgeable(table, judged.facts)
    source = context.data_sources.add_pandas(table).add_dataframe_asset(table)
    suite = gx.ExpectationSuite(name=table, expectations=[_expectation(*check) for check in checks])
    definition = gx.ValidationDefinition(
        name=table,
        data=source.add_batch_definition_whole_dataframe("partition"),
        suite=context.suites.add(suite),
    )
    checkpoint = gx.Checkpoint(
        name=table,
        validation_definitions=[context.validation_definitions.add(definition)],
        result_format={"result_format": "SUMMARY", "partial_unexpected_count": 10},
    )
    result = context.checkpoints.add(checkpoint).run(
        batch_parameters={"dataframe": frame(table, judged, checks)},
        run_id=RunIdentifier(run_name=name, run_time=run_time),
    )
    (validation,) = result.run_results.values()
    found = {r.expectation_config.meta["rule"]: r for r in validation.results if r.expectation_config}
    return {rule.name: _outcome(found.get(rule.name), rule, judged) for rule, _ in checks}


def _context(docs: Path) -> "EphemeralDataContext":
    """A context in memory whose only files are the data docs."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    site = {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs)},
    }
    settings = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
        data_docs_sites={"docs": site},
        progress_bars=ProgressBarsConfig(globally=False),
        analytics_enabled=False,
    )
    return gx.get_context(project_config=settings, mode="ephemeral")


def judgeable(table: str, facts: DayFacts | None) -> list[tuple[RowRule | DayRule, Expectation]]:
    """A table's rules that can be judged, with their expectations; the bounds of day rules are filled in."""
    checks: list[tuple[RowRule | DayRule, Expectation]] = [(rule, rule.expectation) for rule in RULES[table].row]
    for rule in RULES[table].day if facts is not None else ():
        assert facts is not None
        if rule.holds(facts) is None:
            continue
        low, high = rule.bounds(facts) or (None, None)
        if rule.expectation.kind == "expect_table_row_count_to_be_between":  # whole numbers only
            low, high = (None if low is None else int(np.ceil(low))), (None if high is None else int(np.floor(high)))
        arguments = {"min_value": low, "max_value": high}
        checks.append((rule, Expectation(rule.expectation.kind, rule.expectation.column, arguments)))
    return checks


def frame(table: str, judged: Judged, checks: list[tuple[RowRule | DayRule, Expectation]]) -> pd.DataFrame:
    """The columns that the expectations look at: those of the table that exist, and the helpers that can be made."""
    rows, helpers, plain = judged.rows, dict[str, Any](), list[str]()
    for rule, expectation in checks:
        has_columns = set(rule.columns) <= set(rows.table.column_names)
        if expectation.helper is None:
            plain += [expectation.column] if expectation.column in rows.table.column_names else []
        elif expectation.column == f"rule: {rule.name}" and rule.name in judged.masks:
            helpers[expectation.column] = judged.masks[rule.name]
        elif has_columns:
            helpers[expectation.column] = expectation.helper(rows)
    columns = {column: _array(rows.table[column]) for column in plain} | helpers
    # Great Expectations keeps the index of every check's rows: let it be narrow
    places = pd.Index(np.arange(rows.table.num_rows, dtype=np.int32))
    return pd.DataFrame({**columns, QUARANTINED: judged.quarantined_B.astype(np.float64)}, index=places)


def _array(column: pa.ChunkedArray) -> Any:
    """A column for pandas, of a nullable type only where something is null: such types take more room."""
    return column.to_pandas(types_mapper=_NULLABLE.get if column.null_count else None).array


def _expectation(rule: RowRule | DayRule, expectation: Expectation) -> Any:
    import great_expectations.expectations as gxe

    make = getattr(gxe, "".join(word.capitalize() for word in expectation.kind.split("_")))
    column = {"column": expectation.column} if expectation.column else {}
    severity = {"stop": "critical", "quarantine": "warning", "warn": "info"}[rule.level]
    return make(**column, **expectation.arguments, meta={"rule": rule.name}, notes=rule.says, severity=severity)


def _outcome(result: "ExpectationValidationResult | None", rule: RowRule | DayRule, judged: Judged) -> Outcome:
    if result is None:
        return Outcome("broken", note="the check gave no result")
    problem = _exception(result.exception_info)
    if problem is not None:
        return Outcome("broken", note=problem)
    if isinstance(rule, DayRule):
        assert judged.facts is not None
        count, expected = int(not result.success), int(not rule.holds(judged.facts))
    else:
        count, expected = int(result.result.get("unexpected_count", 0)), int((~judged.masks[rule.name]).sum())
    if count != expected:
        return Outcome("broken", note=f"Great Expectations counts {count}, the mask counts {expected}")
    return Outcome("violated" if count else "passed", count)


def _exception(info: Mapping[str, Any] | None) -> str | None:
    """The message of the first exception; GX nests it by metric where a metric raised."""
    if not info:
        return None
    for entry in [info, *(value for value in info.values() if isinstance(value, Mapping))]:
        if entry.get("raised_exception"):
            return str(entry.get("exception_message") or "the check raised an exception")
    return None
