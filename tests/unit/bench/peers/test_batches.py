from dataclasses import replace
from pathlib import Path

import pytest

from bench.context import Context
from bench.load.closed import LoadError
from bench.machine import Placement
from bench.peers import batches, models
from bench.peers.catalog import PEERS
from bench.peers.models import Model
from bench.peers.pair import Plan, Task

SENTENCES = Model(name="minilm", path=Path("/none"), rows=[], max_batch=1, tried=(1, 4))


def task(peer: str = "mosec", *, plan: Plan | None = None) -> Task:
    cores = frozenset({0})
    context = Context(
        placement=Placement(server=cores, load=cores),
        home=Path("/none"),
        cache=Path("/none"),
        data=None,
        models={},
        quick=False,
    )
    return Task(context=context, plan=plan or Plan.of(quick=False), peer=PEERS[peer], seen=[])


def rate(**rates: float) -> batches.Rate:
    def of(size: int) -> float:
        try:
            return rates[f"of_{size}"]
        except KeyError as error:
            msg = f"{size} is too many"
            raise LoadError(msg) from error

    return of


def test_the_size_with_which_a_peer_answers_most_is_kept() -> None:
    assert batches.better([1, 4], rate(of_1=227, of_4=250)) == 4
    assert batches.better([1, 4], rate(of_1=227, of_4=220)) == 1


def test_where_it_makes_no_difference_the_smaller_is_kept() -> None:
    assert batches.better([1, 4], rate(of_1=100, of_4=100)) == 1


def test_a_size_that_does_not_work_is_not_chosen() -> None:
    assert batches.better([1, 4], rate(of_1=100)) == 1
    assert batches.better([1, 4], rate(of_4=100)) == 4


def test_a_peer_that_works_with_no_size_is_an_error() -> None:
    with pytest.raises(LoadError, match="4 is too many"):
        batches.better([1, 4], rate())


def test_sizes_are_tried_with_peers_that_batch_sentences() -> None:
    assert batches.is_tried(task("mosec"), SENTENCES)
    assert not batches.is_tried(task("fastapi"), SENTENCES)
    assert not batches.is_tried(task("kserve"), SENTENCES)


def test_models_whose_batch_is_known_are_not_tried() -> None:
    assert not batches.is_tried(task(), replace(SENTENCES, tried=()))


def test_a_size_that_was_asked_for_is_not_tried_against_others() -> None:
    plan = replace(Plan.of(quick=False), max_batch=8)

    assert not batches.is_tried(task(plan=plan), SENTENCES)


def test_a_short_run_tries_nothing() -> None:
    assert not batches.is_tried(task(plan=Plan.of(quick=True)), SENTENCES)


def test_what_is_tried_holds_the_size_of_a_run_without_a_trial() -> None:
    assert all(models.BATCHES[name] in sizes for name, sizes in models.TRIED.items())
