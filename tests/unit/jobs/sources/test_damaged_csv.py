"""Damaged rows of CSV: each is told with its line, and no other row is read otherwise."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Datatype, InvalidArgumentError
from headrace.jobs.messages import Sizes
from headrace.jobs.sources.csv import STRAY, UNCLOSED, CsvSource, find_rows, head_of
from headrace.jobs.sources.source import ReadRequest

HEADER = "id,a,t\n"
CELLS = st.text(st.sampled_from('ab1,"\n\r é'), max_size=6)
GOOD = st.tuples(st.integers(0, 99).map(str), st.sampled_from(["1", "2.5", ""]), CELLS)
DAMAGED = st.sampled_from(
    [
        (b"1,2,3,4,5\n", "has 5 values, and the header has 3 names"),
        (b'1,2,"x",4\n', "has 4 values, and the header has 3 names"),
        (b'1,2,x"y\n', STRAY),
        (b'1,x"y"z\n', STRAY),
        (b'1,2,"he said "hi" to me"\n', STRAY),
        (b'1,"2" ,3\n', STRAY),
        (b"1,2,a\0b\n", "has a NUL byte"),
        (b"1,2,\xff\xfe\n", "column 't' is not UTF-8"),
        (b"1,x,3\n", "column 'a': 'x' is no FP32"),
    ]
)
# A value behind it that begins with a quote, a separator or an end of line may close it.
OPEN = st.sampled_from([b'1,2,"open\n', b'1,"op,en\n', b'"op""en,2,3\n'])
WANTED = ReadRequest(columns=["t", "a", "id"], rows=3, datatypes={"a": Datatype.FP32})


def line(row: tuple[str, ...]) -> bytes:
    """A row whose values have quotes where they need them."""
    plain = set("ab1é .25")
    cells = [cell if set(cell) <= plain else '"' + cell.replace('"', '""') + '"' for cell in row]
    return (",".join(cells) + "\n").encode()


def read(path: Path, size: int) -> tuple[list[tuple[Any, ...]], dict[int, str]]:
    """All rows of a file, and what is wrong by line."""
    source = CsvSource([str(path)])
    sizes = Sizes(shard_rows=10, shard_bytes=size, run_rows=4, window_rows=2, buffer_bytes=1000)
    rows: list[tuple[Any, ...]] = []
    broken: dict[int, str] = {}
    for shard in source.cut(sizes, WANTED.columns):
        for part in source.read(shard, WANTED):
            assert part.line_of is not None
            broken |= {part.line_of(row): why for row, why in part.broken.items()}
            rows += [row for i, row in enumerate(part.frame.rows()) if i not in part.broken]
    return rows, broken


@st.composite
def files(draw: st.DrawFn) -> tuple[list[tuple[str, ...]], bytes, dict[int, str]]:
    """Good rows, a file that has damaged ones between them, and reasons by line."""
    good: list[tuple[str, ...]] = []
    data, reasons = HEADER.encode(), {}
    after_open = False
    for kind in draw(st.lists(st.sampled_from(["good", "good", "damaged", "open"]), max_size=12)):
        row: tuple[str, ...] = draw(GOOD)
        if kind == "good" or (kind == "damaged" and after_open):
            if after_open:
                row = (row[0], row[1], row[2].lstrip('",\n\r'))
            good.append(row)
            data += line(row)
        else:
            text, why = draw(DAMAGED) if kind == "damaged" else (draw(OPEN), UNCLOSED)
            reasons[data.count(b"\n") + 1] = why
            after_open |= kind == "open"
            data += text
    return good, data, reasons


@given(file=files(), size=st.integers(1, 80), end=st.booleans(), crlf=st.booleans())
def test_damaged_rows_cost_themselves_only(
    tmp_path_factory: pytest.TempPathFactory,
    file: tuple[list[tuple[str, ...]], bytes, dict[int, str]],
    size: int,
    end: bool,  # noqa: FBT001  # drawn
    crlf: bool,  # noqa: FBT001  # as well
) -> None:
    good, data, reasons = file
    path = tmp_path_factory.getbasetemp() / "rows.csv"
    if crlf and not any(sign in row[2] for row in good for sign in "\r\n"):
        data = data.replace(b"\n", b"\r\n")
    path.write_bytes(data if end else data[:-1])

    rows, broken = read(path, size)

    assert broken == reasons
    assert rows == [
        (text or None, float(value) if value else None, number) for number, value, text in good
    ]


def test_rows_are_the_same_whatever_text_follows() -> None:
    data = b'1,"a\nb",3\n1,x"y,2\n"4""",5,"6,\n"\n7,"open\n8,9,"x"\n10,"",""\n'
    whole = find_rows(data, b",", 3)
    assert whole.damaged == {1: STRAY, 3: UNCLOSED}
    for size in range(len(data)):
        part = find_rows(data[:size], b",", 3, complete=False)
        bounds = part.bounds.tolist()
        assert bounds == whole.bounds[: len(bounds)].tolist()
        assert part.damaged == {row: why for row, why in whole.damaged.items() if row < len(part)}


def test_each_of_many_damaged_rows_is_told() -> None:
    for text in (b'1,"o\n', b'1,",\n', b'1,a"b,c\n', b'1,"open\n2,"",3\n'):
        data = text * 5_000
        rows = find_rows(data, b",", 5)
        assert rows.bounds[-1] == len(data)
        assert len(rows.damaged) == data.count(text)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"", "is empty; its first line has to be the column names"),
        (b"id,a,a\n1,2,3\n", "has two columns called 'a'; rename one"),
        ("id,a\n".encode("utf-16"), "begins with bytes that are not UTF-8"),
        (b'id,"a\nb"\n', "does not begin with a line of column names"),
        (b"id,,a\n", "does not begin with a line of column names"),
    ],
)
def test_a_header_that_cannot_be_is_refused_with_its_reason(
    tmp_path: Path, header: bytes, reason: str
) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(header)
    with pytest.raises(InvalidArgumentError, match=reason):
        head_of(str(path))


@pytest.mark.parametrize(
    ("name", "header", "separator"),
    [
        ("a.csv", b"id;a;t\n", ";"),
        ("a.csv", b'"i,d"|a|t\n', "|"),
        ("a.csv", b"id\ta\tt\n", "\t"),
        ("a.tsv", b"id\ta,b\tt\n", "\t"),
        ("a.csv", b"\xef\xbb\xbfid,a;b,t\r\n", ","),
        ("a.csv", b"id\n", ","),
    ],
)
def test_the_separator_is_that_of_the_header(
    tmp_path: Path, name: str, header: bytes, separator: str
) -> None:
    path = tmp_path / name
    path.write_bytes(header)
    names, begin, sign = head_of(str(path))
    assert (sign, begin, names[0][0]) == (separator, len(header), "i")


def test_a_file_of_a_header_only_has_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"id,a,t")
    assert read(path, 10) == ([], {})


def test_values_behind_the_last_column_that_are_empty_are_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"id,a,t\n1,2,3,,,\n4,5,6,\n7\n")
    assert read(path, 100) == ([("3", 2.0, "1"), ("6", 5.0, "4"), (None, None, "7")], {})
