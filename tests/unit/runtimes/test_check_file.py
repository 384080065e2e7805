"""Requests and answers are kept as they are, and what is no such file is refused."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from headrace.core import Array, InvalidArgumentError, Tensors, UnsupportedModelError
from headrace.core.datatypes import DTYPES, Datatype
from headrace.runtimes.check_file import Asked, read_check, write_check

SHAPES = nps.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
NUMBERS = [dtype for name, dtype in DTYPES.items() if name != Datatype.BYTES]


@st.composite
def texts(draw: st.DrawFn) -> Array:
    shape = draw(SHAPES)
    array = np.empty(shape, np.object_)
    for place in np.ndindex(shape):
        array[place] = draw(st.binary(max_size=6))
    return array


def arrays() -> st.SearchStrategy[Array]:
    return st.one_of(nps.arrays(st.sampled_from(NUMBERS), SHAPES), texts())


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
ASKED = st.tuples(
    st.dictionaries(NAMES, arrays(), max_size=2),
    st.dictionaries(NAMES, arrays(), min_size=1, max_size=2),
)


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(
        array.dtype == other[name].dtype
        and array.shape == other[name].shape
        and array.tobytes() == other[name].tobytes()
        if array.dtype.kind != "O"
        else array.tolist() == other[name].tolist() and array.shape == other[name].shape
        for name, array in one.items()
    )


@given(st.lists(ASKED, min_size=1, max_size=3))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read(tmp_path: Path, asked: list[Asked]) -> None:
    file = tmp_path / "check.npz"
    write_check(file, asked)
    found = read_check(file)

    assert len(found) == len(asked)
    for (inputs, answers), (read_inputs, read_answers) in zip(asked, found, strict=True):
        assert same(inputs, read_inputs)
        assert same(answers, read_answers)


def test_names_that_look_alike_are_kept_apart(tmp_path: Path) -> None:
    names = ["x", "x.npy", "x#text", "x#sizes", "in/0/x", "../x", "a b", "ü", "x%23text"]
    inputs = {name: np.array([i]) for i, name in enumerate(names)}
    write_check(tmp_path / "c", [(inputs, {"y": np.array([b"", b"\0a\0"], np.object_)})])

    ((read_inputs, answers),) = read_check(tmp_path / "c")
    assert same(inputs, read_inputs)
    assert answers["y"].tolist() == [b"", b"\0a\0"]


def test_numpy_reads_it_too(tmp_path: Path) -> None:
    write_check(tmp_path / "c.npz", [({"ids": np.arange(3)}, {"y": np.ones(2, np.float32)})])

    with np.load(tmp_path / "c.npz", allow_pickle=False) as found:
        assert found.files == ["in/0/ids", "out/0/y"]
        assert found["in/0/ids"].tolist() == [0, 1, 2]


def test_the_same_requests_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_check(tmp_path / name, [({}, {"y": np.ones(2)})])

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.array([1j]), "complex128, which a request cannot carry"),
        (np.array(["text"]), "<U4"),
        (np.array([object()]), "objects that are not bytes"),
        (np.array([b"a", 5], np.object_), "objects that are not bytes"),
        (np.array([1.0], ">f4"), ">f4"),
    ],
)
def test_what_is_no_tensor_is_not_written(tmp_path: Path, array: Array, said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        write_check(tmp_path / "c", [({"x": array}, {"y": np.ones(1)})])


@pytest.mark.parametrize("count", [0, 4097])
def test_there_are_some_requests_and_not_too_many(tmp_path: Path, count: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"cannot be checked with {count} requests"):
        write_check(tmp_path / "c", [({}, {"y": np.ones(1)})] * count)


def npy(array: Array, *, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=allow_pickle)
    return stream.getvalue()


def archive(path: Path, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in entries.items():
            made.writestr(name, data)
    return path


ONES = npy(np.ones(2))
PICKLED = npy(np.array([{"a": 1}], np.object_), allow_pickle=True)
NAME = "out/0/y.npy"


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({}, "numbered from 0"),
        ({"out/1/y.npy": ONES}, "numbered from 0"),
        ({"in/0/y.npy": ONES}, "a request has no response"),
        ({"y.npy": ONES}, "not a tensor of a request"),
        ({"out/0/../../etc/passwd.npy": ONES}, "not a tensor of a request"),
        ({NAME: PICKLED}, "whose type or order is not supported"),
        ({NAME: npy(np.array(["a"]))}, "whose type or order is not supported"),
        ({NAME: npy(np.ones((2, 2), order="F"))}, "is not supported"),
        ({NAME: ONES[:-1]}, r"claims the shape \(2,\) of 15 bytes"),
        ({NAME: ONES + b"x"}, r"claims the shape \(2,\) of 17 bytes"),
        ({NAME: b""}, "is not a valid file of check requests"),
        ({NAME: b"\x93NUMPY\x03\x00" + ONES[8:]}, "version"),
        (
            {NAME: b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535},
            "is not a valid file of check requests",
        ),
        ({"out/0/y#text.npy": ONES}, "a text is not valid UTF-8"),
        ({"out/0/y#text.npy": npy(np.zeros(3, np.uint8))}, "a text is not valid UTF-8"),
        (
            {
                "out/0/y#text.npy": npy(np.zeros(3, np.uint8)),
                "out/0/y#sizes.npy": npy(np.array([4, -1])),
            },
            "another size",
        ),
        (
            {
                "out/0/y#text.npy": npy(np.zeros(3, np.uint8)),
                "out/0/y#sizes.npy": npy(np.array([2])),
            },
            "another size",
        ),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, entries: dict[str, bytes], said: str) -> None:
    file = archive(tmp_path / "check.npz", **entries)
    with pytest.raises(UnsupportedModelError, match=said) as refused:
        read_check(file)

    assert str(file) in str(refused.value)


def test_a_claim_of_much_memory_is_refused_before_it_is_taken(tmp_path: Path) -> None:
    claimed = ONES.replace(b"(2,), }       ", b"(99999999,), }")
    assert claimed != ONES
    with pytest.raises(UnsupportedModelError, match=r"claims the shape \(99999999,\) of 16 bytes"):
        read_check(archive(tmp_path / "c", **{NAME: claimed}))


def test_an_archive_that_grows_without_end_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        for number in range(2):
            with made.open(f"out/{number}/y.npy", "w") as entry:
                for _ in range(20):
                    entry.write(b"\0" * (1 << 20))
    data = file.read_bytes()
    size = (20 << 20).to_bytes(4, "little")
    assert data.count(size) >= 2
    file.write_bytes(data.replace(size, (1 << 30).to_bytes(4, "little")))

    with pytest.raises(UnsupportedModelError, match="more than 536870912 bytes"):
        read_check(file)


@pytest.mark.parametrize("data", [b"", b"no archive", b"PK\x03\x04" + b"\0" * 200])
def test_what_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "c").write_bytes(data)
    with pytest.raises(UnsupportedModelError, match="is not a valid file of check requests"):
        read_check(tmp_path / "c")


@given(st.binary(max_size=80), st.integers(0, 500))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_told_and_never_more_than_that(tmp_path: Path, noise: bytes, at: int) -> None:
    file = tmp_path / "c"
    write_check(file, [({"x": np.arange(3)}, {"y": np.array([b"ab"], np.object_)})])
    data = bytearray(file.read_bytes())
    data[at : at + len(noise)] = noise
    file.write_bytes(data)

    try:
        found: Any = read_check(file)
    except UnsupportedModelError:
        return
    assert found


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="No such file"):
        read_check(tmp_path / "none")
