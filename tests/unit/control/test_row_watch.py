"""Reports of batching from replicas: kept by version, told once, and never forgotten too early."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from headrace.control.model.records import Event
from headrace.control.reconcile.conditions import ConditionType, conditions_of
from headrace.control.reconcile.reports import ArmReports, RowWatch
from headrace.control.reconcile.status import EndpointStatus, RevisionStatus
from headrace.core import RowIndependence
from headrace.observe.row_checks import BatchingReport, RowDifference
from tests.metrics import exposed
from tests.unit.control.played import TurnedClock

DECLARED = BatchingReport(
    batched=True,
    independence=RowIndependence.DECLARED,
    reason="`rows_independent` declares it; not proven: ReduceMean 'mean' reduces axis 0",
    checks={"same": 3, "different": 0},
)
FOUND = RowDifference(output="y", ratio=0.4, requests=3, rows=3, padded=False, at=5.0)
MIXING = replace(DECLARED, declared=True, checks={"same": 0, "different": 1}, difference=FOUND)
ALONE = BatchingReport(
    batched=False,
    independence=RowIndependence.UNPROVEN,
    reason="ReduceMean 'mean' reduces axis 0",
)


class Told:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.rows = RowWatch(emit=self._emit, clock=TurnedClock())

    async def _emit(self, events: Sequence[Event]) -> None:
        self.events += events

    def note(self, *reports: BatchingReport, revision: str = "r1", key: str = "1") -> None:
        arm = ArmReports("fraud", key, key, revision, reports)
        asyncio.run(self.rows.note([arm]))


def test_difference_is_told_once_with_the_output_the_size_and_the_remedy() -> None:
    told = Told()
    told.note(DECLARED)
    assert told.events == []
    told.note(MIXING)
    told.note(replace(MIXING, difference=replace(FOUND, at=6.0)))

    [event] = told.events
    assert (event.endpoint, event.kind, event.reason) == ("fraud", "batching", "RowsDiffer")
    assert "output 'y' differs by 40 % of its largest value between a row alone" in event.message
    assert "remove `rows_independent`" in event.message
    assert event.data["ratio"] == 0.4


def test_alert_has_the_largest_difference_and_nothing_where_nothing_is_known() -> None:
    told = Told()
    assert told.rows.differing("fraud") == (None, "")
    told.note(DECLARED)
    assert told.rows.differing("fraud") == (0.0, "")
    told.note(MIXING)
    ratio, detail = told.rows.differing("fraud")
    assert ratio == 0.4
    assert detail.startswith("version 1: output 'y'")
    told.note(replace(MIXING, difference=replace(FOUND, ratio=None, at=9.0)))
    assert told.rows.differing("fraud")[0] == 1.0


def test_difference_outlasts_a_replica_that_starts_again_and_one_that_does_not_answer() -> None:
    told = Told()
    told.note(MIXING)
    told.note(DECLARED)
    told.note()
    assert told.rows.differing("fraud")[0] == 0.4
    assert len(told.events) == 1


def test_other_settings_of_the_version_begin_anew() -> None:
    told = Told()
    told.note(MIXING)
    told.note(ALONE, revision="r2")
    assert told.rows.differing("fraud") == (0.0, "")
    assert told.rows.report("fraud", "1", "r1") is None
    assert told.rows.report("fraud", "1", "r2") == ALONE
    assert exposed(told.rows.families()) == ""


def test_checks_of_replicas_are_added() -> None:
    told = Told()
    told.note(DECLARED, MIXING)
    report = told.rows.report("fraud", "1", "r1")
    assert report is not None
    assert report.checks == {"same": 3, "different": 1}


def test_metric_names_endpoint_version_and_output() -> None:
    told = Told()
    told.note(MIXING)
    line = 'headrace_row_difference{endpoint="fraud",version="1",output="y"} 0.4'
    assert line in exposed(told.rows.families())


@pytest.mark.parametrize(
    ("reports", "reason"),
    [
        ([None], "NotReported"),
        ([BatchingReport(batched=True)], "NotExamined"),
        ([BatchingReport(batched=True, independence=RowIndependence.PROVEN)], "Proven"),
        ([ALONE], "OneRequestAtATime"),
        ([DECLARED, ALONE], "Declared"),
        ([ALONE, MIXING], "RowsDiffer"),
    ],
)
def test_condition_says_the_weakest_evidence(
    reports: list[BatchingReport | None], reason: str
) -> None:
    revisions = tuple(
        RevisionStatus(
            version=str(number),
            model=f"m:{number}",
            weight=50,
            desired_weight=50,
            desired_replicas=1,
            replicas=(),
            batching=report,
            batching_message="" if report is None else report.text,
        )
        for number, report in enumerate(reports)
    )
    status = EndpointStatus(
        name="m", ready=True, failed=False, url="", revisions=revisions, message=""
    )
    found = {one.type: one for one in conditions_of(status, None, now=1.0)}
    condition = found[ConditionType.ANSWERS_INDEPENDENT]
    assert (condition.status, condition.reason) == (reason != "RowsDiffer", reason)


@pytest.mark.parametrize(
    ("report", "texts"),
    [
        (ALONE, ["one request at a time: ReduceMean 'mean'", "rows_independent: true"]),
        (
            replace(ALONE, independence=None, reason="axis 0 of input 'x' has a fixed size"),
            ["one request at a time: axis 0 of input 'x' has a fixed size"],
        ),
        (
            replace(ALONE, declared=True),
            ["one request at a time although `rows_independent` is declared: ReduceMean"],
        ),
        (DECLARED, ["batched, not proven", "3 rows checked in production, none differs"]),
        (replace(DECLARED, checks={"same": 0}), ["no rows checked yet"]),
        (replace(DECLARED, checks={}), ["rows are not checked in production"]),
        (replace(DECLARED, checks={"same": 0, "failed": 2}), ["2 more failed when run alone"]),
        (replace(MIXING, declared=False), ["set `batched = False` in the model"]),
        (
            replace(MIXING, independence=RowIndependence.PROVEN, declared=False),
            ["padding: {max_ratio: 1.0}"],
        ),
        (
            MIXING,
            ["answers depend on other requests' rows", "by 40 %", "remove `rows_independent`"],
        ),
    ],
)
def test_report_says_for_people_what_it_is_and_what_to_do(
    report: BatchingReport, texts: list[str]
) -> None:
    for text in texts:
        assert text in report.text
