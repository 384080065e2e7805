import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import pytest

from bench.peers import page, plots, store, tables
from bench.peers.rows import Row
from bench.peers.store import Part, Run
from bench.peers.suites import saturation

MACHINE = {
    "processor": "a processor",
    "cores": 2,
    "memory_kb": 8_000_000,
    "kernel": "6",
    "python": "3.11",
    "revision": "0" * 40,
}


def row(server: str, rps: list[float]) -> Row:
    return Row(
        suite=saturation.SUITE,
        model="mlp",
        load=saturation.JSON,
        server=server,
        figures={"rps": rps, "p50_us": [500.0] * len(rps)},
    )


def part(name: str = "mosec", **fields: object) -> Part:
    whole = {"rows": [row("headrace", [300.0, 200.0]), row(name, [100.0, 100.0])], **fields}
    return Part(name=name, title=name.title(), is_quick=False, **whole)  # type: ignore[arg-type]


def run(*parts: Part) -> Run:
    return Run(
        started="2026-01-02T03:04:05",
        is_quick=False,
        build="compiled wheel",
        machine=MACHINE,
        placement="server on core 0",
        load_tool="wrk",
        load_average={},
        targets=[],
        parts=list(parts),
    )


def test_figures_are_replaced_and_the_rest_of_the_page_stays() -> None:
    text = f"before\n{page.BEGIN}\n\nold\n\n{page.END}\nafter\n"

    once = page.filled(text, "new")

    assert once == f"before\n{page.BEGIN}\n\nnew\n\n{page.END}\nafter\n"
    assert page.filled(once, "new") == once


@pytest.mark.parametrize("text", ["", page.BEGIN, page.END, f"{page.END}\n{page.BEGIN}"])
def test_a_page_without_a_place_for_figures_is_an_error(text: str) -> None:
    with pytest.raises(page.PageError, match="no place for figures"):
        page.filled(text, "new")


def test_the_page_in_the_documentation_has_that_place() -> None:
    assert page.filled(page.PAGE.read_text(), "new").count("new") >= 1


def test_a_page_tells_both_figures_their_ratio_and_what_failed(tmp_path: Path) -> None:
    file = tmp_path / "peers.md"
    file.write_text(f"{page.BEGIN}\n{page.END}\n")
    broken = part("ray", rows=[], failures={"mlp": "StartError: it ended\nmore"})
    absent = Part(name="triton", title="Triton", is_quick=False, skipped="cannot be installed: no")

    page.write(run(part(), broken, absent), file, tmp_path / "images")
    written = file.read_text()

    assert "| Mosec | 100 / 250 |" in written
    assert "2.45 [" in written  # the geometric mean of 3 and 2
    assert "Not measured: Ray, mlp: StartError: it ended\n" in written
    assert "Not measured: Triton: cannot be installed: no" in written
    assert "requests.svg" in written
    assert (tmp_path / "images" / "requests.svg").exists()


def test_a_page_tells_which_batches_were_chosen(tmp_path: Path) -> None:
    file = tmp_path / "peers.md"
    file.write_text(f"{page.BEGIN}\n{page.END}\n")

    page.write(run(part(batches={"minilm": 4}), part("ray")), file, tmp_path / "images")

    line = "Largest batch with minilm, the better of 1 and 4: Mosec 4."
    assert line in file.read_text()


def test_a_figure_that_was_not_taken_is_a_dash() -> None:
    assert tables.Column(key="rps", heading="x").cell(None) == "-"


def test_a_mean_is_shown_with_its_interval() -> None:
    column = tables.Column(key="rps", heading="x", scale=10, digits=1)

    assert column.cell(row("a", [1.0])) == "10.0"
    assert column.cell(row("a", [1.0, 1.0])) == "10.0 [10.0 to 10.0]"


def test_an_interval_of_what_is_above_0_stays_above_0() -> None:
    cell = tables.Column(key="rps", heading="x", digits=1).cell(row("a", [1.0, 9.0]))

    assert cell.startswith("3.0 [")
    assert "-" not in cell


def test_a_terminal_shows_a_table_for_each_load_and_says_what_was_noisy() -> None:
    noisy = msgspec.structs.replace(row("mosec", [100.0]), noisy=2)

    text = tables.terminal([row("headrace", [300.0]), noisy])

    assert text.startswith("saturation, mlp, JSON, 32 connections\nserver")
    assert "NOISY 2 windows" in text


@pytest.mark.parametrize(
    ("lag", "tail", "said"),
    [(0.001, 0.01, ""), (0.005, 0.01, "50 % of the p99"), (0.1, 0.0, "nothing")],
)
def test_a_late_generator_is_told(lag: float, tail: float, said: str) -> None:
    measured = msgspec.structs.replace(
        row("mosec", [1.0]), figures={"lag_p99_s": [lag], "p99_s": [tail]}
    )

    assert said in tables.late(measured)
    assert bool(tables.late(measured)) == bool(said)


def test_a_closed_loop_has_no_lag() -> None:
    assert tables.late(row("mosec", [1.0])) == ""


def test_a_plot_is_xml_whose_longest_bar_is_the_largest_value() -> None:
    text = plots.svg("a < b", [plots.Bars(label="R&D", theirs=50, ours=200)])

    root = ET.fromstring(text)  # noqa: S314  # of our own making
    space = "{http://www.w3.org/2000/svg}"
    bars = [float(one.attrib["width"]) for one in root.iter(f"{space}rect")][2:]
    assert bars == [plots.BARS, plots.BARS / 4]
    assert root.findtext(f"{space}title") == "a < b"


def test_a_plot_of_nothing_but_zeros_can_be_drawn() -> None:
    assert 'width="0.0"' in plots.svg("x", [plots.Bars(label="a", theirs=0, ours=0)])


def test_a_plot_of_a_negative_value_is_an_error() -> None:
    with pytest.raises(ValueError, match="begin at 0"):
        plots.svg("x", [plots.Bars(label="a", theirs=-1, ours=0)])


def test_a_part_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    kept = part(done=["mlp"], failures={"busy": "x"}, batches={"minilm": 4})
    store.keep(kept, tmp_path)

    back = store.resume(tmp_path, Part(name="mosec", title="Mosec", is_quick=False))

    assert (back.done, back.rows, back.batches) == (kept.done, kept.rows, kept.batches)
    assert back.failures == {}  # what failed is tried again


@pytest.mark.parametrize("change", [{"is_quick": True}, {"name": "ray"}])
def test_a_part_of_another_kind_of_run_is_not_resumed(
    tmp_path: Path, change: dict[str, object]
) -> None:
    store.keep(part(done=["mlp"]), tmp_path)
    fresh = Part(**{"name": "mosec", "title": "Mosec", "is_quick": False, **change})  # type: ignore[arg-type]

    assert store.resume(tmp_path, fresh) is fresh


def test_a_part_of_another_version_is_not_resumed(tmp_path: Path) -> None:
    store.path_of(tmp_path, "mosec").parent.mkdir()
    store.path_of(tmp_path, "mosec").write_text('{"rows": 3}')
    fresh = Part(name="mosec", title="Mosec", is_quick=False)

    assert store.resume(tmp_path, fresh) is fresh


def test_a_run_comes_back_as_it_was_written(tmp_path: Path) -> None:
    whole = run(part())
    store.write_run(whole, tmp_path, "now")

    assert store.read_run(tmp_path / "latest.json") == whole
    assert (tmp_path / "now.json").exists()


@pytest.mark.parametrize(
    ("value", "limit", "text"),
    [(1.29983, 1.3, "1.2998"), (1.3, 1.3, "1.3"), (2.339, 1.2, "2.34"), (335.7, 15, "336")],
)
def test_a_figure_that_is_just_not_enough_does_not_look_like_enough(
    value: float, limit: float, text: str
) -> None:
    assert page.measured(value, limit) == text
