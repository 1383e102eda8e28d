from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from marketplace import Market


@pytest.fixture
def market(tmp_path: Path) -> Market:
    return Market(tmp_path)


@pytest.fixture
def make_market(tmp_path: Path) -> Callable[..., Market]:
    def make(**rules: Any) -> Market:
        return Market(tmp_path, **rules)

    return make
