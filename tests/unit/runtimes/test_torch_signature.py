"""What authors write down of their modules: read strictly, matched by name, number or place."""

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Datatype, TensorSpec, UnsupportedModelError
from headrace.runtimes.torch.signature import (
    how_to_declare,
    match_names,
    parse_declared,
)

PATH = Path("model") / "signature.json"


def spec(name: str) -> TensorSpec:
    return TensorSpec(name=name, datatype=Datatype.FP32, shape=(-1,))


def test_everything_is_read() -> None:
    found = parse_declared(
        PATH,
        json.dumps(
            {
                "inputs": [{"name": "x", "datatype": "INT64", "shape": [-1, 2]}],
                "outputs": [{"name": "y", "datatype": "FP32", "shape": []}],
                "batched": False,
                "method": "score",
                "values": {"rate": 16000, "loud": True, "gain": 0.5, "kind": "a"},
            }
        ).encode(),
    )

    assert found.inputs == (TensorSpec(name="x", datatype=Datatype.INT64, shape=(-1, 2)),)
    assert found.outputs[0].shape == ()
    assert found.batched is False
    assert found.method == "score"
    assert found.values == {"rate": 16000, "loud": True, "gain": 0.5, "kind": "a"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not a valid signature: .*; write it as "),
        ("[" * 100_000, "is not a valid signature"),
        ("\xff", "is not a valid signature"),
        ('{"input": []}', "unknown field or value"),
        ('{"inputs": [{"name": "x"}]}', "missing required field `datatype`"),
        (
            '{"inputs": [{"name": "x", "datatype": "F32", "shape": []}]}',
            "unsupported datatype; use one",
        ),
        (
            '{"inputs": [{"name": "x", "datatype": "BYTES", "shape": []}]}',
            "unsupported datatype; use",
        ),
        ('{"inputs": [{"name": "x", "datatype": "FP32", "shape": [-2]}]}', r"the shape \[-2\]"),
        ('{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1.5]}]}', "Expected `int`"),
        (
            '{"inputs": [{"name": "a/b", "datatype": "FP32", "shape": []}]}',
            "name is not allowed for a tensor",
        ),
        (
            json.dumps({"outputs": [{"name": "x", "datatype": "FP32", "shape": []}] * 2}),
            "names one of its outputs twice",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_file_and_the_reason(
    text: str, reason: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=f"model/signature.json: .*{reason}"):
        parse_declared(PATH, text.encode("latin-1"))


@given(st.binary(max_size=200))
def test_whatever_stands_there_is_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(UnsupportedModelError):
        assert parse_declared(PATH, data).method


def test_the_advice_is_itself_a_signature() -> None:
    advice = how_to_declare(["ids", "mask"])

    found = parse_declared(
        PATH, advice[advice.index('{"inputs"') : advice.rindex("}") + 1].encode()
    )

    assert [one.name for one in found.inputs] == ["ids", "mask"]


def test_names_are_matched_by_name_number_or_place() -> None:
    own = ["ids", "mask", "scale"]

    by_name = match_names(PATH, [spec("mask"), spec("ids")], own)
    by_number = match_names(PATH, [spec("INPUT__2"), spec("INPUT__0")], own)
    by_place = match_names(PATH, [spec("a"), spec("b")], own)

    assert {name: one.name for name, one in by_name.items()} == {"mask": "mask", "ids": "ids"}
    assert {name: one.name for name, one in by_number.items()} == {
        "scale": "INPUT__2",
        "ids": "INPUT__0",
    }
    assert {name: one.name for name, one in by_place.items()} == {"ids": "a", "mask": "b"}


@pytest.mark.parametrize(
    ("declared", "stray"),
    [
        (["ids", "masc"], "masc"),
        (["a", "b", "c"], "a"),
        (["INPUT__0", "INPUT__7"], "INPUT__7"),
        (["A__0", "B__0"], "B__0"),
    ],
)
def test_names_that_do_not_fit_are_refused(declared: list[str], stray: str) -> None:
    with pytest.raises(
        UnsupportedModelError, match=f"'{stray}' is declared, but the module has 'ids', 'mask'"
    ):
        match_names(PATH, [spec(name) for name in declared], ["ids", "mask"])
