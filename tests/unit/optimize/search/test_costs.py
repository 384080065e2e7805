"""What do a million requests cost?"""

import pytest
from msgspec.structs import replace

from headrace.optimize.search.journal import cost_per_million, said_of_cost
from headrace.optimize.search.process import SearchRequest, Target
from tests.unit.optimize.search.made import started

STARTED = started()
ONE = SearchRequest(source="m")
ALL = SearchRequest(source="m", target=Target.COST)


def test_all_cores_cost_the_whole_price() -> None:
    assert cost_per_million(3.6, 1000.0, STARTED, ALL) == pytest.approx(1.0)


def test_a_run_at_a_time_costs_the_cores_that_it_takes() -> None:
    two_threads = SearchRequest(source="m", threads=2)
    more_than_there_are = SearchRequest(source="m", threads=8)

    assert cost_per_million(3.6, 1000.0, STARTED, ONE) == pytest.approx(0.5)
    assert cost_per_million(3.6, 1000.0, STARTED, two_threads) == pytest.approx(1.0)
    assert cost_per_million(3.6, 1000.0, STARTED, more_than_there_are) == pytest.approx(1.0)


def test_without_a_price_nothing_is_known() -> None:
    assert cost_per_million(None, 1000.0, STARTED, ALL) is None
    assert cost_per_million(3.6, 0.0, STARTED, ALL) is None


def test_what_the_cost_is_of_is_told() -> None:
    assert "3.6 an hour for 2 cores, all of which" in said_of_cost(3.6, STARTED, ALL)
    assert "of which one run takes 1" in said_of_cost(3.6, STARTED, ONE)
    one_core = replace(STARTED, cores=1)
    assert "which one run at a time takes" in said_of_cost(3.6, one_core, ONE)


def test_without_a_price_only_who_asked_for_costs_is_told_why_there_are_none() -> None:
    assert "--cost-per-hour" in said_of_cost(None, STARTED, ALL)
    assert not said_of_cost(None, STARTED, ONE)
