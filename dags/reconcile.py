"""The DAG that finds a partition which nobody consumed, and announces it again."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

from airflow.sdk import Asset, CronTriggerTimetable, task
from airflow.sdk.exceptions import AirflowSkipException

from storyrec_tasks import FEATURES, MODEL, VALIDATED_LOGS, one_run_at_a_time, unconsumed_days

TRIAGE = """
### reconcile: did an event get lost?
Every day at 05:30 UTC, one task an asset: a partition of the last 30 days that was produced more than an hour ago, that
started no run of the next DAG and left no marker in the working storage, is announced again, which starts the next DAG.

**A task is green (not skipped).** It found something: its log names the days. One lost event is noise; the same day
twice means that the next DAG is paused or its import is broken.
"""

GRACE = timedelta(hours=1)
LOOK_BACK = timedelta(days=30)


def announce_again(asset: Asset, *, marker: str, inlet_events: Any, outlet_events: Any) -> list[date]:
    """Emit the asset's event again for every lost partition; skipped where there is none."""
    days = unconsumed_days(inlet_events[asset], marker=marker, now=datetime.now(UTC), grace=GRACE, look_back=LOOK_BACK)
    if not days:
        raise AirflowSkipException("every produced partition was consumed")
    outlet_events[asset].add_partitions([day.isoformat() for day in days])
    return days


with one_run_at_a_time(
    "reconcile",
    description="Find a produced partition that nobody consumed and start it",
    schedule=CronTriggerTimetable("30 5 * * *", timezone="UTC", run_immediately=timedelta(0)),
    about="events",
    triage=TRIAGE,
) as dag:

    @task(inlets=[VALIDATED_LOGS], outlets=[VALIDATED_LOGS])
    def validated_logs(*, inlet_events: Any = None, outlet_events: Any = None) -> list[str]:
        """Days that were validated but whose features were never built."""
        days = announce_again(
            VALIDATED_LOGS, marker="features/dt={day}.json", inlet_events=inlet_events, outlet_events=outlet_events
        )
        return [day.isoformat() for day in days]

    @task(inlets=[FEATURES], outlets=[FEATURES])
    def features(*, inlet_events: Any = None, outlet_events: Any = None) -> list[str]:
        """Days that have features but were never trained."""
        days = announce_again(
            FEATURES, marker="runs/dt={day}/outcome.json", inlet_events=inlet_events, outlet_events=outlet_events
        )
        return [day.isoformat() for day in days]

    @task(inlets=[MODEL], outlets=[MODEL])
    def model(*, inlet_events: Any = None, outlet_events: Any = None) -> list[str]:
        """Days that were trained but never published."""
        days = announce_again(
            MODEL, marker="features/published/dt={day}.json", inlet_events=inlet_events, outlet_events=outlet_events
        )
        return [day.isoformat() for day in days]

    validated_logs()
    features()
    model()
