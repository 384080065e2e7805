"""The page stands alone, says all, and nothing that a model is called does anything in it."""

from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from headrace.optimize.report import (
    CandidateReport,
    OptimizeReport,
    QualityEvidence,
    html_report,
    text_report,
)
from headrace.runtimes.optimized.file import Processor
from tests.unit.optimize.report.reports import BASELINE, CHOSEN, REPORT

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Elements with their attributes, and the text; it fails on what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data.replace("\u00a0", " ")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_everything_a_sceptic_asks_is_on_the_page() -> None:
    page = Page(html_report(REPORT))

    for said in (
        "openvino-int8 takes 67.8 % less time than onnxruntime-fp32",
        "4.71 ms [4.66, 4.8]",
        "88.49 %",
        "12 lost, 13 gained (p = 1)",
        "loses 17.6 points of accuracy (p < 0.001), and 1 is tolerated",
        "AMD EPYC 9V45",
        "avx512_vnni",
        "1 thread, batch 1, length 128, one request at a time, hot caches",
        "2,693 labelled, sst2-dev-test.csv",
        "256 examples, sha256 9f86d081884c7d659a2feaa0c55ad015",
        "onnxruntime 1.32.0",
        "torch-eager (PyTorch, eager)",
        "What is not proved",
        "Not drawn, for want of figures: torch-eager, tensorrt-fp16.",
    ):
        assert said in page.text


def test_the_page_needs_nothing_else() -> None:
    text = html_report(REPORT)
    page = Page(text)

    assert {tag for tag, _ in page.tags}.isdisjoint(
        {"script", "link", "img", "iframe", "object", "base", "form", "image", "use"}
    )
    assert not any(
        name in {"src", "href", "style"} or name.startswith("on")
        for _, attributes in page.tags
        for name in attributes
    )
    assert "url(" not in text
    assert "@import" not in text
    assert "http" not in text.replace("http-equiv", "")


def test_the_page_can_be_read_without_seeing_it() -> None:
    page = Page(html_report(REPORT))

    assert page.tags[0] == ("html", {"lang": "en"})
    assert len(page.all("title")) == 1 + 2 * 9
    images = [one for one in page.all("svg") if one.get("role") == "img"]
    assert len(images) == 2
    assert all(one["aria-label"] for one in images)
    others = [one for one in page.all("svg") if one not in images]
    assert all(one.get("aria-hidden") == "true" for one in others)
    heads = [one for one in page.all("th") if one.get("scope") == "col"]
    assert len(heads) == 8 + 6
    assert len([one for one in page.all("th") if one.get("scope") == "row"]) == 11


def test_the_page_has_two_themes_and_paper() -> None:
    text = html_report(REPORT)

    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


@pytest.mark.parametrize("where", ["model", "name", "title", "reason", "recipe", "note", "version"])
def test_markup_in_what_others_wrote_is_text(where: str) -> None:
    evil = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[2J"
    report = {
        "model": lambda: replace(REPORT, model=evil),
        "name": lambda: replace(REPORT, chosen=replace(CHOSEN, name=evil)),
        "title": lambda: replace(REPORT, chosen=replace(CHOSEN, title=evil)),
        "reason": lambda: replace(REPORT, rejected=[CandidateReport(name="x", reason=evil)]),
        "recipe": lambda: replace(REPORT, chosen=replace(CHOSEN, recipe={evil: evil})),
        "note": lambda: replace(REPORT, notes=[evil]),
        "version": lambda: replace(REPORT, versions={evil: evil}),
    }[where]()

    text = html_report(report)
    page = Page(text)

    assert page.all("script") == page.all("img") == []
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "<script>alert(1)</script>" in page.text
    assert "\x1b" not in text


def test_without_labels_the_page_says_fidelity_only() -> None:
    page = Page(
        html_report(replace(REPORT, data=QualityEvidence(why_weaker="Nobody knows the truth.")))
    )

    assert "Fidelity only" in page.text
    assert "Nobody knows the truth." in page.text
    assert "none with labels" in page.text
    assert "loss, points" not in page.text
    assert "largest loss tolerated" not in page.text


def test_where_nothing_is_better_the_page_says_so() -> None:
    page = Page(html_report(replace(REPORT, chosen=BASELINE)))

    assert "No candidate is better than onnxruntime-fp32: keep it" in page.text
    assert "tiles" not in [one.get("class") for one in page.all("dl")]


def test_one_candidate_alone_makes_a_page_without_a_picture() -> None:
    alone = OptimizeReport(
        model="m",
        processor=Processor(name="", features=()),
        baseline=CandidateReport(name="b"),
        chosen=CandidateReport(name="b"),
    )

    page = Page(html_report(alone))

    assert not [one for one in page.all("svg") if one.get("role") == "img"]
    assert "What was rejected" not in page.text


figure = st.none() | st.floats()
interval = st.none() | st.tuples(st.floats(), st.floats())
candidate = st.builds(
    CandidateReport,
    name=st.text(max_size=6),
    title=st.text(max_size=6),
    p50_s=figure,
    p50_ci_s=interval,
    p99_s=figure,
    cold_p50_s=figure,
    cold_cut_ratio=figure,
    cold_cut_ci_ratio=interval,
    throughput_per_s=figure,
    cut_ratio=figure,
    cut_ci_ratio=interval,
    accuracy=figure,
    accuracy_loss=figure,
    accuracy_loss_ci=interval,
    p_value=figure,
    lost=st.none() | st.integers(0),
    gained=st.none() | st.integers(0),
    agreement_ratio=figure,
    size_bytes=st.none() | st.integers(0, 2**63),
    memory_bytes=st.none() | st.integers(-(2**63), 2**63),
    load_s=figure,
    cost_per_million=figure,
    reason=st.text(max_size=6),
)


@pytest.mark.slow
@given(
    candidate,
    st.lists(candidate, max_size=4),
    st.lists(candidate, max_size=2),
    st.sampled_from(
        [
            QualityEvidence(),
            QualityEvidence(n=100),
            QualityEvidence(n=9, metric="F1", smallest_loss=0.1),
        ]
    ),
)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=40)
def test_whatever_was_measured_can_be_shown(
    chosen: CandidateReport,
    others: list[CandidateReport],
    rejected: list[CandidateReport],
    data: QualityEvidence,
) -> None:
    report = replace(REPORT, chosen=chosen, candidates=others, rejected=rejected, data=data)

    text = html_report(report)

    for tag, attributes in Page(text).tags:
        if tag in {"circle", "path", "text"}:
            places = [attributes.get(name) or "" for name in ("d", "cx", "cy", "r", "x", "y")]
            assert not any(word in place for place in places for word in ("nan", "inf"))
    assert text_report(report)
