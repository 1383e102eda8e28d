"""docs/marketplace.md holds the very tables of the analyses beside it, and every value that is only ours."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from storyrec.analysis.report import markdown_analysis
from storyrec.logs.simulate.presets import PRESETS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("preset", ["srd-1", "srd-2"])
def test_the_pages_tables_are_those_of_the_analysis(preset: str) -> None:
    page = (DOCS / "marketplace.md").read_text(encoding="utf-8")
    document = json.loads((DOCS / "results" / f"{preset}.json").read_text(encoding="utf-8"))
    tables = markdown_analysis(document)
    assert "| #Instances |" in tables
    assert tables in page


def test_the_page_names_every_field_that_the_presets_set() -> None:
    page = (DOCS / "marketplace.md").read_text(encoding="utf-8")
    laptop = PRESETS["laptop"]
    changed = {
        field.name
        for field in fields(laptop)
        for name in ("srd-1", "srd-2")
        if getattr(PRESETS[name], field.name) != getattr(laptop, field.name)
    }
    assert {"repeat_share", "source_logit"} <= changed
    assert all(f"`{name}`" in page for name in changed - {"says", "format"})
