"""The picture shows who beats whom, and its names can be read."""

import math
import re
from itertools import combinations
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from headrace.core.charts import AxisScale, Dot, Rectangle, place_labels
from headrace.optimize.report import QualityEvidence
from headrace.optimize.report.data import CandidateKind, front, numbered, points
from headrace.optimize.report.html import bars
from headrace.optimize.report.plot import (
    NARROW,
    WIDE,
    PictureSize,
    latency_scale,
    plot,
    quality_scale,
    summary,
)
from tests.unit.optimize.report.reports import REPORT, passed

AREA = Rectangle(left=0.0, top=0.0, right=800.0, bottom=400.0)
positive = st.floats(1e-7, 1e3)


def test_candidates_are_numbered_with_the_rejected_last() -> None:
    found = numbered(REPORT)

    assert [one.number for one in found] == list(range(1, 12))
    assert [one.kind for one in found[:3]] == [
        CandidateKind.BASELINE,
        CandidateKind.REFERENCE,
        CandidateKind.CHOSEN,
    ]
    assert [one.kind for one in found[-3:]] == [CandidateKind.REJECTED] * 3


def test_only_those_with_both_figures_are_drawn() -> None:
    names = {one.numbered.candidate.name for one in points(REPORT)}

    assert "torch-eager" not in names
    assert "tensorrt-fp16" not in names
    assert len(names) == 9


def test_the_front_leaves_out_what_is_beaten_and_what_was_rejected() -> None:
    names = [one.numbered.candidate.name for one in front(points(REPORT))]

    assert names == ["openvino-int8", "openvino-bf16"]


@given(st.lists(st.tuples(positive, st.floats(0, 1)), min_size=1, max_size=12))
def test_nobody_beats_the_front(pairs: list[tuple[float, float]]) -> None:
    report = replace(
        REPORT, candidates=[passed(f"c{i}", x, y, 1000) for i, (x, y) in enumerate(pairs)]
    )
    those = [one for one in points(report) if one.is_accepted]

    on = front(those)

    for one in those:
        beaten = any(
            o.latency_s <= one.latency_s
            and o.quality >= one.quality
            and (o.latency_s, o.quality) != (one.latency_s, one.quality)
            for o in those
        )
        if one in on:
            assert not beaten
        else:
            assert beaten or any(
                (o.latency_s, o.quality) == (one.latency_s, one.quality) for o in on
            )


def test_intervals_of_quality_are_those_of_the_loss_seen_from_the_baseline() -> None:
    chosen = next(one for one in points(REPORT) if one.numbered.kind is CandidateKind.CHOSEN)

    assert chosen.quality_ci == pytest.approx((0.8845 - 0.0033, 0.8845 + 0.0041))


dots = st.builds(
    Dot,
    x=st.floats(0, 800),
    y=st.floats(0, 400),
    radius=st.floats(4, 22),
    width=st.floats(7, 200),
    height=st.just(15.0),
)


@given(st.lists(dots, max_size=16))
def test_names_hide_neither_each_other_nor_a_point(those: list[Dot]) -> None:
    labels = [label for label in place_labels(those, AREA) if label is not None]

    assert all(label.box.within(AREA) for label in labels)
    assert not any(one.box.meets(other.box) for one, other in combinations(labels, 2))
    assert not any(label.box.meets(dot.box) for label in labels for dot in those)


def test_names_keep_off_lines_where_there_is_room() -> None:
    dot = Dot(x=400, y=200, radius=5, width=100, height=15)
    line = Rectangle(left=0, top=195, right=800, bottom=205)

    (label,) = place_labels([dot], AREA, [line])

    assert label is not None
    assert not label.box.meets(line)


def test_where_lines_are_everywhere_a_name_is_written_over_them() -> None:
    dot = Dot(x=400, y=200, radius=5, width=100, height=15)

    assert place_labels([dot], AREA, [AREA]) != [None]


@given(st.lists(positive, min_size=1, max_size=12))
def test_a_scale_of_latencies_holds_them_all_and_has_marks(values: list[float]) -> None:
    scale = latency_scale(values, start=50.0, end=750.0)

    assert all(scale.holds(value) for value in values)
    assert all(50 <= scale.place(value) <= 750 for value in values)
    assert 2 <= len(scale.marks()) <= 60
    assert [scale.place(mark) for mark in scale.marks()] == sorted(map(scale.place, scale.marks()))


def test_latencies_far_apart_stand_by_their_ratios() -> None:
    scale = latency_scale([1e-3, 1e-1], start=0.0, end=100.0)

    assert scale.is_logarithmic
    assert scale.place(1e-2) == pytest.approx(50.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.lists(st.floats(0, 1), max_size=4))
def test_a_scale_of_quality_holds_all_that_passed(good: list[float], bad: list[float]) -> None:
    scale = quality_scale(good, bad, start=400.0, end=0.0)

    assert all(scale.holds(value) for value in good)


def test_what_is_broken_does_not_press_the_others_together() -> None:
    scale = quality_scale([0.88, 0.89], [0.3], start=400.0, end=0.0)

    assert not scale.holds(0.3)
    assert scale.place(0.3) == 400.0
    assert scale.place(0.88) - scale.place(0.89) > 200


@pytest.mark.parametrize("form", [WIDE, NARROW], ids=["wide", "narrow"])
def test_the_picture_is_well_formed_and_told_in_words(form: PictureSize) -> None:
    root = ET.fromstring(plot(REPORT, form))  # noqa: S314  # our own output

    assert root.get("role") == "img"
    assert root.get("aria-label") == summary(REPORT)
    assert "chosen openvino-int8 at 4.71 ms and 88.49 %" in summary(REPORT)
    assert "2 were rejected" in summary(REPORT)
    assert len(root.findall("g")) == 9
    assert len(root.findall("g[@class='rejected']")) == 2


def test_all_places_are_inside_the_picture() -> None:
    root = ET.fromstring(plot(REPORT, WIDE))  # noqa: S314  # our own output

    for circle in root.iter("circle"):
        assert 0 <= float(circle.get("cx", "nan")) <= WIDE.width
        assert 0 <= float(circle.get("cy", "nan")) <= WIDE.height


def test_names_are_on_the_wide_picture_and_numbers_on_the_narrow_one() -> None:
    wide, narrow = plot(REPORT, WIDE), plot(REPORT, NARROW)

    assert re.search(r'<text class="name chosen"[^>]*>openvino-int8</text>', wide)
    assert re.search(r'<text class="name chosen"[^>]*>3</text>', narrow)


def test_one_that_is_far_below_is_told_with_its_figure() -> None:
    assert "openvino-int8-no-model-type, 70.85 %</text>" in plot(REPORT, WIDE)


def test_without_labels_agreement_is_drawn_from_the_baselines_100_percent() -> None:
    report = replace(REPORT, data=QualityEvidence())

    assert {
        one.quality for one in points(report) if one.numbered.kind is CandidateKind.BASELINE
    } == {1.0}
    assert "largest loss tolerated" not in plot(report, WIDE)


def test_one_point_makes_no_picture() -> None:
    alone = replace(REPORT, chosen=REPORT.baseline, candidates=[], rejected=[], references=[])

    assert plot(alone, WIDE) == ""


def test_bars_of_a_column_share_a_scale_that_holds_all() -> None:
    made = bars([0.1, None, 0.5], [(0.0, 0.2), None, (0.4, 0.9)], neutral=0.0, limit=1.0)

    assert (made.scale.low, made.scale.high) == (0.0, 1.0)
    assert made.bar(None, None) == ""
    assert 'cx="66.0"' in made.bar(0.5, (0.4, 0.9))


def test_bars_of_figures_that_are_none_are_left_out() -> None:
    made = bars([math.nan, math.inf, 0.5], neutral=0.0)

    assert (made.scale.low, made.scale.high) == (0.0, 0.5)
    assert made.bar(math.nan, (0.0, 1.0)) == ""
    assert "nan" not in made.bar(0.5, (-math.inf, math.nan))
    assert AxisScale(low=0, high=1, start=0, end=10).place(math.inf) == 10
