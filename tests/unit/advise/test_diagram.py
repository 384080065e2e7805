"""The picture of a running system, in words, as Mermaid and as SVG."""

from typing import Any
from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from headrace.advise.diagram.parts import Picture, describe_picture, mermaid, picture_of
from headrace.advise.diagram.svg import layout, svg

_SVG = "{http://www.w3.org/2000/svg}"


def revision(
    version: str, weight: int, *states: str, model: str = "", role: str = ""
) -> dict[str, Any]:
    return {
        "version": version,
        "model": model or f"m:{version}",
        "weight": weight,
        "desired_weight": weight,
        "desired_replicas": len(states),
        "replicas": [{"state": state, "name": "ignored"} for state in states],
        "role": role,
    }


def endpoint(name: str, *revisions: dict[str, Any], ready: bool = True) -> dict[str, Any]:
    return {"name": name, "ready": ready, "revisions": list(revisions)}


def status(*endpoints: dict[str, Any], scheme: str = "http") -> dict[str, Any]:
    return {
        "ready": True,
        "version": "0.2.0",
        "generation": 12,
        "gateway": {"ready": True, "pid": 1},
        "endpoints": list(endpoints),
        "addresses": {
            "http": f"{scheme}://127.0.0.1:8000",
            "grpc": "127.0.0.1:8001",
            "metrics": "http://127.0.0.1:8002/metrics",
            "admin": "http://127.0.0.1:8080",
        },
    }


def glance(name: str, state: str = "ok", rate: float = 10.0) -> dict[str, Any]:
    return {"name": name, "state": state, "requests_per_s": rate, "p99_s": 0.0121, "more": 1}


def whole() -> Picture:
    """A canary with copies, an upstream, and an endpoint in trouble."""
    return picture_of(
        status(
            endpoint("fraud", revision("3", 90, "ready", "ready"), revision("4", 10, "ready")),
            endpoint("words", revision("1", 100, model="https://u:p@triton:8000/v2")),
            endpoint("churn", revision("1", 100, "starting", "ready"), revision("2", 0, "ready")),
            scheme="https",
        ),
        [glance("fraud", rate=412.5), glance("churn", "failing", 0.0)],
        [
            rollout("fraud", "canary", "4"),
            rollout("churn", "shadow", "2", mirror_percent=25),
        ],
    )


def rollout(name: str, strategy: str, to_version: str, **more: object) -> dict[str, Any]:
    return {
        "endpoint": name,
        "strategy": strategy,
        "phase": "progressing",
        "to_version": to_version,
        **more,
    }


def test_the_picture_has_shares_copies_and_what_is_under_way() -> None:
    churn, fraud, words = whole().endpoints

    assert [(v.name, v.weight, v.ready, v.desired) for v in fraud.versions] == [
        ("3", 90, 2, 2),
        ("4", 10, 1, 1),
    ]
    assert fraud.rollout == "canary progressing"
    assert churn.versions[1].mirror_percent == 25
    assert words.versions[0].server == "triton:8000"
    assert (churn.state, words.state) == ("failing", "ok")
    assert whole().requests_per_s == 412.5
    assert whole().models == 4


def test_it_is_told_in_sentences() -> None:
    text = " ".join(describe_picture(whole()))

    assert "gateway at 127.0.0.1:8000 and 127.0.0.1:8001, encrypted" in text
    assert "Endpoint fraud is ok: version 3 90 %, 2 of 2 replicas ready" in text
    assert "version 2 copies of 25 %, 1 of 1 replica ready; shadow progressing." in text
    assert "version 1 100 %, at triton:8000." in text


def test_of_many_those_in_trouble_and_the_busiest_are_shown() -> None:
    names = [f"e{number}" for number in range(50)]
    rows = [glance(name, rate=float(number)) for number, name in enumerate(names)]
    rows[0] = glance("e0", "warning", 0.0)
    picture = picture_of(status(*(endpoint(name) for name in names)), rows, limit=3)

    assert [part.name for part in picture.endpoints] == ["e0", "e48", "e49"]
    assert picture.more == 47
    assert "47 more endpoints" in mermaid(picture)
    assert "47 more endpoints" in svg(picture)


def test_a_search_leaves_others_out() -> None:
    picture = picture_of(status(endpoint("fraud"), endpoint("churn")), [], search="FRA")

    assert [part.name for part in picture.endpoints] == ["fraud"]
    assert picture.more == 0


def test_mermaid_joins_all_parts() -> None:
    lines = mermaid(whole()).splitlines()

    assert lines[0] == "flowchart LR"
    assert (
        '  e1["fraud<br>ok<br>412.5 requests/s, p99 12.1 ms<br>canary progressing"]:::ok' in lines
    )
    assert "  gateway --> e1" in lines
    assert '  e1 -->|"90 %"| e1v0' in lines
    assert '  e0 -.->|"copies of 25 %"| e0v1' in lines
    assert "u:p" not in "".join(lines)


@given(text=st.text(max_size=30))
def test_no_name_breaks_out_of_a_label(text: str) -> None:
    picture = picture_of(status(endpoint("m", revision("1", 100, model=text))), [])

    for line in mermaid(picture).splitlines():
        assert line.count('"') in {0, 2}


def test_the_svg_describes_itself() -> None:
    root = ET.fromstring(svg(whole()))  # noqa: S314  # our own
    title, desc = root.find(f"{_SVG}title"), root.find(f"{_SVG}desc")

    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == "system-title system-desc"
    assert title is not None
    assert desc is not None
    assert "Endpoint churn is failing" in (desc.text or "")
    assert "prefers-color-scheme: dark" in svg(whole())


def test_the_svg_asks_for_nothing_else_and_runs_nothing() -> None:
    text = svg(whole())

    assert "http" not in text.replace("http://www.w3.org/2000/svg", "").replace("HTTP", "")
    assert "<script" not in text
    assert "u:p" not in text


@given(text=st.text(max_size=60))
def test_no_name_breaks_the_svg(text: str) -> None:
    picture = picture_of(status(endpoint("m", revision("1", 100, model=text))), [])

    ET.fromstring(svg(picture))  # noqa: S314  # our own


def test_ids_can_be_kept_apart_on_a_page() -> None:
    text = svg(whole(), id_prefix="now")

    assert 'id="now-title"' in text
    assert "url(#now-arrow)" in text


@given(counts=st.lists(st.integers(0, 6), max_size=20), limit=st.integers(0, 10))
def test_nothing_overlaps(counts: list[int], limit: int) -> None:
    endpoints = [
        endpoint(f"e{number}", *(revision(str(v + 1), 10, "ready") for v in range(count)))
        for number, count in enumerate(counts)
    ]
    drawing = layout(picture_of(status(*endpoints), [], limit=limit))

    boxes = drawing.boxes
    for place, one in enumerate(boxes):
        assert one.x + one.width <= drawing.width
        assert one.y + one.height <= drawing.height
        for other in boxes[place + 1 :]:
            is_beside = one.x + one.width <= other.x or other.x + other.width <= one.x
            is_above = one.y + one.height <= other.y or other.y + other.height <= one.y
            assert is_beside or is_above


def test_a_system_without_endpoints_says_what_to_do() -> None:
    assert "headrace apply" in svg(picture_of(status(), []))
