import pytest

from bench.peers.pair import SATURATED, SATURATION, Plan, capacity
from bench.peers.rows import Row


def row(load: str, rps: list[float], *, model: str = "mlp") -> Row:
    return Row(suite=SATURATION, model=model, load=load, server="mosec", figures={"rps": rps})


def test_a_capacity_is_that_of_json_with_every_connection_busy() -> None:
    seen = [row(SATURATED, [90.0, 110.0, 100.0]), row("JSON, 1 connection", [7.0])]

    assert capacity(seen, "mlp", "mosec") == 100


def test_the_newest_capacity_counts() -> None:
    assert capacity([row(SATURATED, [1.0]), row(SATURATED, [2.0])], "mlp", "mosec") == 2


@pytest.mark.parametrize(("model", "server"), [("gbdt", "mosec"), ("mlp", "ray")])
def test_a_capacity_that_was_not_measured_names_the_suite_to_run(model: str, server: str) -> None:
    with pytest.raises(KeyError, match="run the suite saturation"):
        capacity([row(SATURATED, [1.0])], model, server)


def test_a_short_run_measures_each_thing_once() -> None:
    plan = Plan.of(quick=True)

    assert (plan.rounds, plan.few, plan.starts) == (1, 1, 1)
    assert plan.seconds < Plan.of(quick=False).seconds
