"""What is said of a drift: which share moved, and nothing that a terminal would obey."""

import numpy as np

from headrace.core import Array
from headrace.monitor.drift_evidence import Spans, nulls_of, why
from headrace.monitor.drift_reference import feature_reference
from headrace.observe.features import count_column


def said(reference: Array, live: Array) -> str:
    one = feature_reference("x", "input", reference)
    nulls = nulls_of(one, alpha=0.001, margin=0.1, violations_margin=0.02)
    return why(one, nulls, Spans.of(one, [count_column(live, one.bins)]))


def texts(*found: str) -> Array:
    made = np.empty(len(found), np.object_)
    made[:] = found
    return made


def test_a_shift_is_told_by_an_edge() -> None:
    numbers = np.random.default_rng(1).normal(size=2000)

    told = said(numbers, numbers[:500] + 1)

    assert " below 0." in told
    assert told.endswith("in the reference")


def test_what_is_wrong_is_told_as_that() -> None:
    numbers = np.random.default_rng(1).normal(size=2000)
    lost = np.where(np.arange(500) % 3, numbers[:500], np.nan)

    assert said(numbers, lost) == "33.4% missing, 0.0% in the reference"
    assert "infinite" in said(numbers, np.where(np.isnan(lost), np.inf, lost))


def test_callers_texts_are_escaped() -> None:
    told = said(texts(*["a", "\x1b[31m\n"] * 200), texts(*["\x1b[31m\n"] * 100))

    assert "\n" not in told
    assert "\x1b" not in told


def test_nothing_valid_is_told_without_a_share() -> None:
    assert said(np.arange(200.0), np.full(50, np.nan)) == "100.0% missing, 0.0% in the reference"
