"""What a key changes of `headrace top`, and how it looks."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from headrace.cli.top import SORT_KEYS, TopView, render


def pressed(keys: str, view: TopView | None = None) -> TopView:
    view = TopView() if view is None else view
    for key in keys:
        view = view.press(key)
    return view


def row(name: str = "fraud", **changed: Any) -> dict[str, Any]:  # noqa: ANN401  # as JSON has it
    return {
        "name": name,
        "ready": True,
        "state": "ok",
        "versions": ["3", "4"],
        "replicas_ready": 1,
        "replicas_desired": 2,
        "requests_per_s": 1412.52,
        "error_ratio": 0.0123,
        "p50_s": 0.00085,
        "p95_s": 0.0042,
        "p99_s": 1.309,
        "rollout": "progressing",
        **changed,
    }


def document(*rows: dict[str, Any], total: int = 0) -> dict[str, Any]:
    return {"total": total or len(rows), "page": 1, "size": 20, "endpoints": list(rows)}


def text_of(found: dict[str, Any], view: TopView | None = None, *, is_live: bool = True) -> str:
    console = Console(width=160, no_color=True)
    with console.capture() as capture:
        console.print(render(found, TopView() if view is None else view, is_live=is_live))
    return capture.get()


@pytest.mark.parametrize("key", sorted(SORT_KEYS))
def test_a_key_sorts(key: str) -> None:
    view = pressed(f"j{key}")

    assert view.query(20) == {"search": "", "page": 1, "size": 20, "sort": SORT_KEYS[key]}


def test_the_order_turns_round_and_back() -> None:
    assert pressed("r-").query(1)["sort"] == "-requests_per_s"
    assert pressed("r--").query(1)["sort"] == "requests_per_s"


@pytest.mark.parametrize(
    ("keys", "search", "typing"),
    [
        ("/fraud", "fraud", True),
        ("/q\r", "q", False),
        ("/frx\x7f\r", "fr", False),
        ("/fr\x1b", "", False),
        ("/fr\r\x1b", "", False),
        ("/\x00a\r", "a", False),
    ],
)
def test_a_search_is_typed(keys: str, search: str, typing: bool) -> None:  # noqa: FBT001  # a row of the table
    view = pressed(keys)

    assert (view.search, view.typing, view.is_over) == (search, typing, False)


@pytest.mark.parametrize("keys", ["q", "\x03", "\x04", "/abc\x03", "/abc\rq"])
def test_one_can_leave(keys: str) -> None:
    assert pressed(keys).is_over


def test_pages_are_turned_within_what_there_is() -> None:
    assert pressed("jjj").page == 4
    assert pressed("jjj").within(total=45, size=20).page == 3
    assert pressed("kkk").page == 1
    assert pressed("jj").within(total=0, size=20).page == 1


@given(keys=st.text(max_size=200))
def test_no_key_breaks_the_view(keys: str) -> None:
    view = pressed(keys)

    assert view.page >= 1
    assert len(view.search) <= 100


def test_the_table_shows_numbers_with_units() -> None:
    text = text_of(document(row(), row("churn", p50_s=None, state="idle", rollout=None)))

    assert "1,412.5" in text
    assert "1.2%" in text
    assert "850 µs" in text
    assert "4.2 ms" in text
    assert "1.31 s" in text
    assert "3, 4" in text
    assert "2 endpoints, page 1 of 1" in text
    assert "q quit" in text


def test_the_sorted_column_is_marked() -> None:
    assert "req/sv" in text_of(document(row()), pressed("r"))
    assert "req/s^" in text_of(document(row()), pressed("r-"))


def test_a_search_that_is_typed_is_shown() -> None:
    assert "/fra_" in text_of(document(row()), pressed("/fra"))


@pytest.mark.parametrize(
    ("search", "total", "said"),
    [
        ("x", 0, "no endpoint name contains 'x'"),
        ("", 0, "no endpoints yet"),
        ("", 9, "no more endpoints"),
    ],
)
def test_an_empty_table_says_why(search: str, total: int, said: str) -> None:
    assert said in text_of(document(total=total), TopView(search=search))


def test_what_goes_into_a_pipe_has_no_help() -> None:
    lines = text_of(document(row(name="a" * 60)), is_live=False).splitlines()

    assert len(lines) == 2
    assert "a" * 60 in lines[1]
