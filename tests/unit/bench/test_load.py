import json

import pytest

from bench.load import h2
from bench.load.closed import LoadError, read_json_line
from bench.load.connection import BrokenError, answer_size
from bench.load.open_loop import Outcome, schedule

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


def test_figures_are_read_from_the_last_line() -> None:
    assert read_json_line(line())["rps"] == 50


@pytest.mark.parametrize("wrong", [{"refused": 1}, {"broken": 1}, {"requests": 0}])
def test_a_refused_or_broken_request_spoils_the_window(wrong: dict[str, int]) -> None:
    with pytest.raises(LoadError):
        read_json_line(line(**wrong))


def test_h2load_figures_are_read() -> None:
    figures = h2.read(H2LOAD.format(good=10000, failed=0, data=380000), 38)

    assert figures == {"rps": 5000, "requests": 10000, "wall_s": 2, "mean_us": pytest.approx(6400)}


def test_a_grpc_error_is_seen_by_its_missing_message() -> None:
    with pytest.raises(LoadError, match=r"0\.0 bytes an answer, not 38"):
        h2.read(H2LOAD.format(good=10000, failed=0, data=0), 38)


def test_a_failed_call_spoils_the_window() -> None:
    with pytest.raises(LoadError, match="1 failed"):
        h2.read(H2LOAD.format(good=9999, failed=1, data=380000), 38)


def test_strange_output_is_an_error() -> None:
    with pytest.raises(LoadError, match="something else"):
        h2.read("could not connect", 38)


def test_an_answer_ends_where_its_length_says() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 4\r\n\r\n"

    assert answer_size(head[:-1]) == 0
    assert answer_size(head + b"bo") == len(head) + 4


def test_an_answer_without_a_length_cannot_be_read() -> None:
    with pytest.raises(BrokenError):
        answer_size(b"HTTP/1.1 200 OK\r\nx: y\r\n\r\n")


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
