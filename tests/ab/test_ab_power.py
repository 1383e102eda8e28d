"""Planning: the formula against tests that are drawn."""

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from storyrec.ab.power import find_lift, find_users, plan
from storyrec.errors import ConfigError
from storyrec.schema import IMPRESSIONS

START = datetime(2026, 3, 1, tzinfo=UTC)


def test_so_many_users_find_the_lift_in_so_many_tests() -> None:
    rng = np.random.default_rng(2)
    users = find_users(0.1, variation=0.5, power=0.8, treatment_share=0.3)
    num_treatment = round(0.3 * users)
    control = rng.gamma(4, 1, (2_000, users - num_treatment))  # variation .5
    treatment = 1.1 * rng.gamma(4, 1, (2_000, num_treatment))
    found = stats.ttest_ind(treatment, control, axis=1, equal_var=False).pvalue <= 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.04)


def test_users_and_lift_are_each_other_s_answer() -> None:
    users = find_users(0.02, variation=1.3, power=0.9, treatment_share=0.5)
    assert find_lift(1.3**2 * 4 / users, power=0.9) == pytest.approx(0.02, rel=1e-3)
    assert find_users(0.02, variation=1.3, power=0.9, treatment_share=0.1) > 2.7 * users
    assert find_users(-0.02, variation=1.3, power=0.9, treatment_share=0.5) == pytest.approx(users, rel=0.05)


def test_a_plan_counts_the_users_of_so_many_days(tmp_path: Path) -> None:
    """Impressions of the log contract are a log to plan by: it has no dwell time."""
    rows = [
        {"user_id": user, "story_id": story, "shown_at": START + timedelta(days=day), "clicked": story <= user % 3}
        for day in range(3)
        for user in range(1, 21 + 10 * day)
        for story in (1, 2)
    ]
    (tmp_path / "dt=2026-03-01").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=IMPRESSIONS), tmp_path / "dt=2026-03-01" / "part-0.parquet")
    found = plan(tmp_path, lift=0.05, power=0.8, treatment_share=0.5)
    assert [(one.metric.name, one.num_days, one.num_users) for one in found] == [
        (name, days, users) for name in ("click_rate", "stories_viewed") for days, users in ((1, 20), (2, 30), (3, 40))
    ]
    clicked = [sum(story <= user % 3 for story in (1, 2)) for user in range(1, 21)]
    one = found[3]
    assert one.variation == pytest.approx(np.std(clicked, ddof=1) / np.mean(clicked))
    assert one.users_needed == pytest.approx(4 * ((1.95996 + 0.84162) * one.variation / math.log(1.05)) ** 2, rel=0.01)
    assert one.detectable < one.detectable_daily


def test_no_lift_is_no_plan(tmp_path: Path) -> None:
    for lift in (0, math.inf):
        with pytest.raises(ConfigError, match=f"no test finds a lift of {lift}"):
            plan(tmp_path, lift=lift, power=0.8, treatment_share=0.5)
