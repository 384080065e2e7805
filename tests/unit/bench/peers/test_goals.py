from collections.abc import Sequence

import pytest

from bench.peers.catalog import PEERS
from bench.peers.goals import targets
from bench.peers.rows import Row
from bench.peers.running import HEADRACE
from bench.peers.store import Part
from bench.peers.suites import alone, goodput, image, latency, own, saturation, strain
from bench.results import Target


def rows(
    suite: str, model: str, load: str, key: str, /, **servers: float | Sequence[float]
) -> list[Row]:
    return [
        Row(
            suite=suite,
            model=model,
            load=load,
            server=server,
            figures={key: [values] if isinstance(values, int | float) else list(values)},
        )
        for server, values in servers.items()
    ]


def part(name: str, *groups: list[Row]) -> Part:
    return Part(
        name=name, title=name, is_quick=False, rows=[row for group in groups for row in group]
    )


def check(*parts: Part) -> list[Target]:
    return targets({one.name: one for one in parts})


def only(*parts: Part) -> Target:
    (target,) = check(*parts)
    return target


def test_nothing_measured_is_nothing_promised() -> None:
    assert check(part("mosec"), part(HEADRACE)) == []


@pytest.mark.parametrize(
    ("peer", "times"),
    [("mosec", 1.2), ("triton", 4.0), ("fastapi", 4.4), ("mlserver", 15), ("ray", 15)],
)
def test_each_peer_has_its_own_limit_of_requests(peer: str, times: float) -> None:
    where = (saturation.SUITE, "mlp", saturation.JSON, "rps")

    below = only(part(peer, rows(*where, headrace=99 * times, **{peer: 100})))
    at = only(part(peer, rows(*where, headrace=100 * times, **{peer: 100})))

    assert (below.is_met, at.is_met) == (False, True)
    assert PEERS[peer].title in at.text


def test_requests_are_compared_within_rounds() -> None:
    where = (saturation.SUITE, "gbdt", saturation.JSON, "rps")

    target = only(part("mosec", rows(*where, headrace=[200, 30, 9], mosec=[100, 10, 1])))

    assert target.value == 3


def test_models_that_cost_something_promise_no_requests() -> None:
    where = (saturation.SUITE, "minilm", saturation.JSON, "rps")

    assert check(part("mosec", rows(*where, headrace=1, mosec=1))) == []


def test_a_tail_at_half_load_must_be_no_longer() -> None:
    where = (latency.SUITE, "mlp", latency.of_slower(0.5), "p99_s")

    target = only(part("mosec", rows(*where, headrace=0.003, mosec=0.002)))

    assert target.value == pytest.approx(1.5)
    assert not target.is_met


def test_goodput_is_held_against_the_best_peer() -> None:
    where = (goodput.SUITE, "minilm", goodput.LOAD, "goodput")

    target = only(
        part("mosec", rows(*where, headrace=130, mosec=100)),
        part("ray", rows(*where, headrace=140, ray=10)),
    )

    assert (target.value, target.is_met) == (1.3, True)
    assert "mosec" in target.text


def test_pictures_are_held_against_a_bare_socket() -> None:
    where = (image.SUITE, "resnet", image.BINARY, "rps")

    target = only(part("mosec", rows(*where, headrace=96, mosec=1, **{image.FLOOR: 100})))

    assert (target.value, target.is_met) == (0.96, False)


def test_grpc_is_held_against_servers_in_python_only() -> None:
    where = (own.GRPC, "mlp", own.GRPC_LOAD, "rps")

    target = only(
        part("triton", rows(*where, headrace=1, triton=1)),
        part("kserve", rows(*where, headrace=8, kserve=2)),
    )

    assert target.value == 4


def test_start_and_memory_are_held_against_servers_in_python_only() -> None:
    def cost(peer: str) -> Part:
        return part(
            peer,
            rows(own.COST, "mlp", own.COST_LOAD, "first_answer_s", headrace=2, **{peer: 1}),
        )

    (target,) = check(cost("mlserver"), cost("torchserve"))

    assert (target.value, target.is_met) == (2, False)


def test_overload_is_held_against_its_own_peak() -> None:
    def at(times: float, **figures: float) -> Row:
        return Row(
            suite=strain.OVERLOAD,
            model="busy",
            load=strain.at_times(times),
            server=HEADRACE,
            figures={name: [value] for name, value in figures.items()},
        )

    loads = [
        at(0.8, goodput=80, refused_p99_s=0),
        at(1.0, goodput=100, refused_p99_s=0),
        at(3.0, goodput=89, refused_p99_s=0.01),
    ]

    kept, refused = check(part("mosec", loads))

    assert (kept.value, kept.is_met) == (0.89, False)
    assert (refused.value, refused.is_met) == (0.01, True)


def test_the_floor_is_the_best_bare_way_of_each_round() -> None:
    first, second, third = alone.BARE
    measured = rows(
        alone.FLOOR,
        "minilm",
        alone.FLOOR_LOAD,
        "goodput",
        **{HEADRACE: [95, 80], first: [100, 50], second: [90, 100], third: [1, 1]},
    )

    assert only(part(HEADRACE, measured)).value == pytest.approx((0.95 + 0.8) / 2)


def test_a_floor_on_which_nothing_held_promises_nothing() -> None:
    measured = rows(alone.FLOOR, "minilm", alone.FLOOR_LOAD, "goodput", **{HEADRACE: 95}, bare=0.0)

    assert check(part(HEADRACE, measured)) == []


def test_a_neighbour_may_move_the_tail_by_a_fifth() -> None:
    measured = rows(
        alone.NEIGHBOUR, "mlp", "x", "p99_s", **{alone.QUIET: 0.010, alone.LOADING: 0.0125}
    )

    target = only(part(HEADRACE, measured))

    assert (target.value, target.is_met) == (1.25, False)


def test_many_models_may_cost_a_third_of_the_median() -> None:
    measured = rows(
        alone.MANY_SUITE, "minilm", "x", "p50_us", **{alone.ONE: 100, alone.ROUND_ROBIN: 129}
    )

    assert only(part(HEADRACE, measured)).is_met
