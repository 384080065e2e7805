import pytest

from bench.peers.suites import goodput
from bench.windows import Figures


class Server:
    """Answers in time up to a rate, and remembers what it was sent."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.rates: list[float] = []
        self.seeds: list[int] = []

    def __call__(self, rate: float, *, seed: int = 0) -> Figures:
        self.rates.append(rate)
        self.seeds.append(seed)
        return {
            "rate": rate,
            "goodput": 0.98 * rate,
            "p99_s": rate / 1000,
            "in_time_ratio": 1.0 if rate <= self.limit else 0.5,
        }


def test_a_first_search_stays_between_shares_of_the_capacity() -> None:
    server = Server(80)

    found = goodput.search(server, capacity=100, probes=6)

    assert 77 < found <= 80
    assert all(goodput.LOW * 100 < rate < goodput.HIGH * 100 for rate in server.rates)


def test_goodput_is_the_largest_rate_that_held_with_the_figures_of_its_window() -> None:
    server = Server(95)

    found = goodput.nearby(server, 100, probes=3)

    assert found["goodput"] == max(rate for rate in server.rates if rate <= 95)
    assert found["goodput"] == found["rate"]
    assert found["p99_s"] == found["rate"] / 1000
    assert len(server.rates) == 3


@pytest.mark.parametrize("limit", [45, 70, 86, 95, 105, 117, 140, 200])
def test_a_first_search_that_was_off_changes_nothing(limit: float) -> None:
    server = Server(limit)

    found = goodput.nearby(server, 100, probes=3)

    step = (goodput.ABOVE / goodput.BELOW) ** 0.5**3
    assert found["goodput"] in server.rates
    assert limit / step * (1 - 1e-9) <= found["goodput"] <= limit


def test_a_server_that_keeps_no_rate_has_no_goodput() -> None:
    server = Server(0)

    found = goodput.nearby(server, 100, probes=3)

    assert found["goodput"] == 0
    assert found["rate"] == min(server.rates)
    assert len(server.rates) == 3 * goodput.BRACKETS


def test_a_search_upwards_ends() -> None:
    server = Server(1e9)

    found = goodput.nearby(server, 100, probes=3)

    assert found["goodput"] == max(server.rates)
    assert len(server.rates) == 3 * goodput.BRACKETS


def test_every_round_has_arrivals_of_its_own_and_one_search_the_same() -> None:
    server = Server(95)

    again = goodput.searched(server, capacity=100, probes=2)
    again()
    again()

    assert server.seeds == sorted(server.seeds)
    assert set(server.seeds) == {0, 1, 2}


@pytest.mark.parametrize(("first", "windows"), [(0.5, 1), (0.97, 2), (0.99, 1)])
def test_a_window_that_nearly_held_is_sent_again(first: float, windows: int) -> None:
    shares = iter([first, 1.0])
    sent: list[float] = []

    def sent_at(rate: float) -> Figures:
        sent.append(rate)
        return {"in_time_ratio": next(shares)}

    found = goodput.tried(sent_at, 100)

    assert sent == [100] * windows
    assert found["in_time_ratio"] == (first if windows == 1 else 1.0)


def test_what_is_refused_or_lost_is_not_in_time() -> None:
    assert goodput.keeps({"in_time_ratio": 0.99})
    assert not goodput.keeps({"in_time_ratio": 0.98})
