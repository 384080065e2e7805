import json

import pytest

from bench.load import arrivals, h2
from bench.load.closed import LoadError, read_json_line, read_tolerantly
from bench.load.open_loop import Burst, Outcome, schedule

H2LOAD = """
finished in 2.00s, 5000.00 req/s, 1.00MB/s
requests: 10000 total, 10032 started, 10000 done, {good} succeeded, {failed} failed, 0 errored
status codes: 10000 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 1.00MB (1048576) total, 100.00KB (102400) headers (space savings 90%), 371KB ({data}) data
                     min         max         mean         sd        +/- sd
time for request:      200us      9.00ms      6.40ms       100us    90.00%
"""


def line(**changed: int) -> str:
    good = {"requests": 100, "wall_s": 2.0, "p50_us": 5, "p99_us": 9, "refused": 0, "broken": 0}
    return "chatter\n" + json.dumps({**good, **changed}) + "\n"


@pytest.mark.parametrize("wrong", [{"refused": 1}, {"broken": 1}, {"requests": 0}])
def test_a_refused_or_broken_request_spoils_the_window(wrong: dict[str, int]) -> None:
    with pytest.raises(LoadError):
        read_json_line(line(**wrong))


def test_a_grpc_error_is_seen_by_its_missing_message() -> None:
    with pytest.raises(LoadError, match=r"0\.0 bytes an answer, not 38"):
        h2.read(H2LOAD.format(good=10000, failed=0, data=0), 38)


def test_a_failed_call_spoils_the_window() -> None:
    with pytest.raises(LoadError, match="1 failed"):
        h2.read(H2LOAD.format(good=9999, failed=1, data=380000), 38)


def test_arrivals_keep_their_rate_and_order() -> None:
    times = schedule(1000, 10, seed=1)

    assert times == sorted(times)
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert times == schedule(1000, 10, seed=1)


def test_only_answers_within_the_deadline_are_goodput() -> None:
    outcome = Outcome(latencies_s=[0.01, 0.09, 0.2], lags_s=[0.0] * 5)
    outcome.statuses.update({200: 3, 429: 2})

    figures = outcome.as_dict(sent_s=2, deadline_s=0.1)

    assert (figures["goodput"], figures["good"], figures["late"]) == (1.0, 2, 1)
    assert figures["statuses"] == {"200": 3, "429": 2}


def test_what_a_server_refuses_is_counted_where_that_is_allowed() -> None:
    figures = read_tolerantly(line(refused=20, broken=25))

    assert figures["rps"] == 40
    assert figures["failed_ratio"] == pytest.approx(45 / 125)


def test_a_server_that_refuses_everything_has_no_figures() -> None:
    with pytest.raises(LoadError, match="none of 100"):
        read_tolerantly(line(refused=100))


def test_a_burst_multiplies_the_rate_for_a_second_and_leaves_the_rest() -> None:
    burst = Burst(factor=10, starts=[1.0, 4.0])

    times = schedule(200, 6, seed=1, burst=burst)

    during = [at for at in times if burst.is_on(at)]
    assert times == sorted(times)
    assert len(during) == pytest.approx(4000, rel=0.05)
    assert len(times) - len(during) == pytest.approx(800, rel=0.1)
    assert burst.end_s == 5


def test_tails_and_refusals_are_told_apart() -> None:
    outcome = Outcome(latencies_s=[at / 1000 for at in range(1, 1001)], refusals_s=[0.5, 0.1, 0.2])

    figures = outcome.as_dict(sent_s=1, deadline_s=10)

    assert (figures["p95_s"], figures["p999_s"]) == (0.95, 0.999)
    assert figures["refused_p50_s"] == 0.2


def generated(**changed: object) -> str:
    return json.dumps({"statuses": {"200": 5, "429": 1}, "broken": 0, "good": 5, **changed})


def test_refusals_are_no_error_of_open_loop_load() -> None:
    assert arrivals.read(generated(), may_fail=False)["status_429"] == 1


@pytest.mark.parametrize("wrong", [{"statuses": {"500": 1}}, {"broken": 2}])
def test_other_statuses_and_broken_connections_are_unless_they_may_be(
    wrong: dict[str, object],
) -> None:
    with pytest.raises(LoadError, match="statuses"):
        arrivals.read(generated(**wrong), may_fail=False)
    assert arrivals.read(generated(**wrong), may_fail=True)["good"] == 5
