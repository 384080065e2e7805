"""What does the report of a search say?"""

from headrace.optimize.report import CandidateReport, OptimizeReport
from headrace.optimize.search.journal import Event, MemoryMeasured, state_of
from headrace.optimize.search.outcome import report_of
from headrace.optimize.search.process import SearchRequest
from tests.unit.optimize.search.made import (
    BASE,
    SCORED,
    built,
    judged,
    scored,
    screened,
    started,
    timed,
)

REQUEST = SearchRequest(source="m", budget_s=100.0)


def events() -> list[Event]:
    made: list[Event] = [started("fast", "faster", labelled=5000), *built(BASE), SCORED]
    for name, ratio in (("fast", 0.5), ("faster", 0.3)):
        made += [*built(name), *timed(name, (name, ratio)), screened(name, loss=0.02)]
    return [*made, judged("fast", passes=True)]


def reported(more: list[Event] | None = None, price: float | None = None) -> OptimizeReport:
    state = state_of([*events(), *(more or [])])
    return report_of(state, REQUEST, reference="model", cost_per_hour=price)


def named(report: OptimizeReport, name: str) -> CandidateReport:
    return next(one for one in (*report.candidates, *report.rejected) if one.name == name)


def test_one_that_was_only_screened_shows_what_it_reached_and_on_how_many() -> None:
    faster = named(reported(), "faster")

    assert (faster.n, faster.accuracy, faster.accuracy_loss) == (512, 0.88, 0.02)
    assert "on the first 512 of 5,000" in faster.reason


def test_a_baseline_that_had_no_time_for_all_examples_is_told_of() -> None:
    assert any("used 1,000 of 5,000 examples" in note for note in reported().notes)
    assert not any("examples, as more" in note for note in reported([scored(5000)]).notes)


def test_with_a_price_each_one_that_was_timed_has_a_cost() -> None:
    report = reported(price=0.2)

    costs = [one.cost_per_million for one in (report.baseline, report.chosen, *report.rejected)]
    assert all(costs)
    baseline, chosen, faster = (cost or 0.0 for cost in costs)
    assert 0.26 < baseline < 0.29  # half of the machine, for 10 ms each
    assert baseline > chosen > faster
    assert any("0.2 per hour for 2 cores" in note for note in report.notes)


def test_without_a_price_none_has() -> None:
    report = reported()

    assert report.baseline.cost_per_million is None
    assert not any("per hour" in note for note in report.notes)


def test_what_was_weighed_shows_its_time_to_load() -> None:
    weighed: list[Event] = [MemoryMeasured(at_s=4.0, name="fast", memory_bytes=10, load_s=0.25)]
    report = reported(weighed)

    assert (report.chosen.name, report.chosen.load_s) == ("fast", 0.25)
    assert report.baseline.load_s is None
