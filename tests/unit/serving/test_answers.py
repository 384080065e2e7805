"""Answers kept for pairing: in order, bounded, the same in every process."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Tensors
from headrace.serving import answers as module
from headrace.serving.answers import AnswerRing, digest_of, is_sampled
from headrace.serving.report import AnswersPage


def outputs(*values: float) -> Tensors:
    return {"y": np.array([values], np.float32)}


def ids(page: AnswersPage) -> list[str]:
    return [answer.request_id for answer in page.answers]


def test_an_answer_holds_its_numbers_and_who_it_is_for() -> None:
    ring = AnswerRing()
    ring.add("a", "ann", {"y": np.array([[1, 2]], np.int64), "z": np.array([0.5])})

    (answer,) = ring.page(0).answers
    assert (answer.request_id, answer.unit, answer.failed) == ("a", "ann", False)
    assert answer.values == [1.0, 2.0, 0.5]
    assert len(answer.digest) == 16


def test_texts_are_kept_as_texts() -> None:
    ring = AnswerRing()
    ring.add("a", "", {"y": np.array([b"cat", b"\xff"], np.object_)})

    assert ring.page(0).answers[0].values == ["cat", "�"]


def test_values_are_cut_over_all_outputs_and_the_digest_is_not() -> None:
    ring = AnswerRing()
    for last in (1.0, 2.0):
        many = np.arange(60, dtype=np.float32)
        ring.add("a", "", {"y": many, "z": many, "w": np.array([last])})

    one, other = ring.page(0).answers
    assert one.values == other.values == [*range(60), 0.0, 1.0, 2.0, 3.0]
    assert one.digest != other.digest


def test_what_json_cannot_say_as_a_number_is_a_text() -> None:
    ring = AnswerRing()
    ring.add("a", "", outputs(math.nan, math.inf, -math.inf, 1.0))

    page = msgspec.json.decode(msgspec.json.encode(ring.page(0)), type=AnswersPage)

    assert page.answers[0].values == ["nan", "inf", "-inf", 1.0]


def test_a_failure_is_kept_without_values() -> None:
    ring = AnswerRing()
    ring.add_failure("a", "ann")

    (answer,) = ring.page(0).answers
    assert answer.failed
    assert answer.values == []


@given(st.lists(st.integers(0, 5), max_size=30))
def test_readers_who_follow_the_cursor_see_every_answer_once(bursts: list[int]) -> None:
    ring, cursor = AnswerRing(), 0
    seen: list[str] = []
    added: list[str] = []
    for burst in bursts:
        for _ in range(burst):
            added.append(str(len(added)))
            ring.add(added[-1], "", outputs(1.0))
        page = ring.page(cursor)
        cursor = page.cursor
        seen += ids(page)

    assert seen == added


def test_a_page_is_bounded_and_the_next_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 2)
    ring = AnswerRing()
    for i in range(5):
        ring.add(str(i), "", outputs(1.0))

    pages = [ring.page(0), ring.page(2), ring.page(4), ring.page(5)]

    assert [ids(page) for page in pages] == [["0", "1"], ["2", "3"], ["4"], []]
    assert [page.cursor for page in pages] == [2, 4, 5, 5]


def test_the_oldest_goes_when_the_ring_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CAPACITY", 3)
    ring = AnswerRing()
    for i in range(5):
        ring.add(str(i), "", outputs(1.0))

    page = ring.page(0)

    assert ids(page) == ["2", "3", "4"]
    assert page.cursor == 5


def test_a_cursor_of_another_process_starts_over() -> None:
    ring = AnswerRing()
    ring.add("a", "", outputs(1.0))

    assert ids(ring.page(7_000)) == ["a"]


def test_a_cleared_ring_gives_only_what_came_later() -> None:
    ring = AnswerRing()
    ring.add("a", "", outputs(1.0))
    ring.clear()
    ring.add("b", "", outputs(1.0))

    assert ids(ring.page(0)) == ["b"]
    assert ids(ring.page(1)) == ["b"]
    assert ring.page(0).cursor == 2


def test_equal_outputs_have_equal_digests_whatever_their_memory() -> None:
    plain = np.arange(6, dtype=np.float32).reshape(2, 3)

    assert digest_of({"y": plain}) == digest_of({"y": np.asfortranarray(plain)})
    assert digest_of({"y": plain}) != digest_of({"y": plain.reshape(3, 2)})
    assert digest_of({"y": plain}) != digest_of({"y": plain.astype(np.float64)})
    assert digest_of({"y": plain}) != digest_of({"z": plain})


def test_texts_that_only_join_alike_have_other_digests() -> None:
    one, other = np.empty(2, np.object_), np.empty(2, np.object_)
    one[:], other[:] = [b"ab", b"c"], [b"a", b"bc"]

    assert digest_of({"y": one}) != digest_of({"y": other})


@pytest.mark.parametrize("percent", [1, 10, 50])
def test_a_share_of_ids_is_sampled(percent: int) -> None:
    rng = np.random.default_rng(7)
    many = [rng.bytes(16).hex().encode() for _ in range(20_000)]

    share = sum(is_sampled(one, percent) for one in many) / len(many)

    assert share == pytest.approx(percent / 100, abs=0.015)


@given(st.binary(), st.integers(0, 100), st.integers(0, 100))
def test_a_larger_share_holds_the_smaller(one: bytes, share: int, other: int) -> None:
    low, high = sorted((share, other))

    assert is_sampled(one, high) or not is_sampled(one, low)
    assert is_sampled(one, 100)
    assert not is_sampled(one, 0)
