from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bench.context import Context
from bench.load.closed import LoadError
from bench.machine import Placement
from bench.peers import store
from bench.peers.catalog import PEERS
from bench.peers.measure import Choice, take
from bench.peers.pair import Plan, Task
from bench.peers.rows import Row
from bench.peers.store import Part
from bench.peers.suites import NAMES


def choice(out: Path, *suites: str, models: Sequence[str] = ("mlp", "minilm", "resnet")) -> Choice:
    return Choice(
        suites=frozenset(suites),
        models=frozenset(models),
        out=out,
        resume=False,
        report=lambda _: None,
    )


def task(home: Path) -> Task:
    cores = frozenset({0})
    context = Context(
        placement=Placement(server=cores, load=cores),
        home=home,
        cache=home,
        data=None,
        models={},
        quick=True,
    )
    return Task(context=context, plan=Plan.of(quick=True), peer=PEERS["mosec"], seen=[])


def part() -> Part:
    return Part(name="mosec", title="mosec", is_quick=True)


def row(load: str) -> Row:
    return Row(suite="saturation", model="mlp", load=load, server="mosec", figures={"rps": [1.0]})


def step(job: Task, load: str, error: Exception | None = None) -> Callable[[], None]:
    def run() -> None:
        job.seen.append(row(load))
        if error:
            raise error

    return run


@pytest.mark.parametrize("error", [LoadError("it broke"), TypeError("a bug")])
def test_a_failed_step_keeps_what_it_measured_and_the_next_goes_on(
    tmp_path: Path, error: Exception
) -> None:
    job = task(tmp_path)

    done = take(
        part(),
        job,
        [("first", step(job, "a", error)), ("second", step(job, "b"))],
        choice(tmp_path, *NAMES),
    )

    assert done.done == ["second"]
    assert done.failures == {"first": f"{type(error).__name__}: {error}"}
    assert [one.load for one in done.rows] == ["a", "b"]


def test_what_was_measured_is_stored_after_each_step(tmp_path: Path) -> None:
    job = task(tmp_path)
    seen: list[list[str]] = []

    def look() -> None:
        seen.append(store.resume(tmp_path, part()).done)

    take(part(), job, [("first", step(job, "a")), ("look", look)], choice(tmp_path, *NAMES))

    assert seen == [["first"]]


def test_a_step_of_an_earlier_run_is_not_repeated(tmp_path: Path) -> None:
    job, known = task(tmp_path), part()
    known.done = ["first"]

    take(known, job, [("first", step(job, "a"))], choice(tmp_path, *NAMES))

    assert job.seen == []


def test_a_suite_that_needs_a_capacity_brings_saturation_with_it(tmp_path: Path) -> None:
    assert choice(tmp_path, "goodput").paired("minilm") == ["saturation", "goodput"]
    assert choice(tmp_path, "latency", "saturation").paired("mlp") == ["saturation", "latency"]


def test_a_suite_that_needs_no_capacity_stays_alone(tmp_path: Path) -> None:
    assert choice(tmp_path, "image").paired("resnet") == ["image"]


def test_a_model_that_was_not_chosen_is_asked_nothing(tmp_path: Path) -> None:
    assert choice(tmp_path, *NAMES, models=["mlp"]).paired("minilm") == []
