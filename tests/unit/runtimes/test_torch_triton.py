"""Triton's configuration says which tensors a module takes, in all the ways its format allows."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Datatype, TensorSpec, UnsupportedModelError
from headrace.runtimes.torch.signature import find_config, read_config

# As Triton's own example for PyTorch has it, with comments and both ways to write a list.
CONFIG = """
name: "net"  # a comment with a "quote
platform: "pytorch_libtorch"
max_batch_size: 8
input [
  { name: "INPUT__0" data_type: TYPE_FP32 dims: [ 3, 224, -1 ] },
  { name: 'INPUT__1', data_type: TYPE_INT64, dims: 2 dims: 4; }
]
output { name: "OUTPUT__0" data_type: TYPE_BF16 dims: [ 10 ] label_filename: "l.txt" }
instance_group [ { count: 1 kind: KIND_CPU } ]
dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100 }
parameters: { key: "INFERENCE_MODE" value: { string_value: "true" } }
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "config.pbtxt"
    path.write_text(text)
    return path


def test_tensors_are_read_with_the_batch_that_is_left_out(tmp_path: Path) -> None:
    inputs, outputs, takes_batches = read_config(written(tmp_path, CONFIG))

    assert takes_batches

    assert inputs == (
        TensorSpec(name="INPUT__0", datatype=Datatype.FP32, shape=(-1, 3, 224, -1)),
        TensorSpec(name="INPUT__1", datatype=Datatype.INT64, shape=(-1, 2, 4)),
    )
    assert outputs == (TensorSpec(name="OUTPUT__0", datatype=Datatype.FP32, shape=(-1, 10)),)


def test_without_a_batch_shapes_are_whole(tmp_path: Path) -> None:
    text = 'input < name: "x" data_type: TYPE_BOOL dims: [ 2 ] >'

    inputs, outputs, _ = read_config(written(tmp_path, text))

    assert inputs == (TensorSpec(name="x", datatype=Datatype.BOOL, shape=(2,)),)
    assert outputs == ()
    assert read_config(written(tmp_path, "")) == ((), (), False)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('input [ { name: "x" data_type: TYPE_STRING } ]', "declares no supported type for 'x'"),
        ('input [ { name: "x" } ]', "declares no supported type for 'x'"),
        ("input [ { data_type: TYPE_FP32 dims: [ 1 ] } ]", "declares no name"),
        ('input [ { name: "x" data_type: TYPE_FP32 dims: [ a ] } ]', "no sizes as 'dims', for 'x'"),
        ('input [ { name: "x" data_type: TYPE_FP32 dims: [ -2 ] } ]', "no sizes as 'dims'"),
        ("input: 3", "has a value where a tensor is expected"),
        ("max_batch_size: -1", "says a max_batch_size that is no size"),
        ("input [ {", "ends in the middle of a message"),
        ("name", "ends in the middle of a field"),
        ("name: ]", "has ']' where a value belongs"),
        ("} a: 1", "'}' closes a message that is not open"),
        ('name: "open', """cannot be parsed from character 5 on"""),
        ("a {" * 50, "nests deeper than 32 levels"),
        (" " * (1 << 20) + "a: 1", "has more than 1048576 bytes"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(
    tmp_path: Path, text: str, reason: str
) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        read_config(written(tmp_path, text))

    assert "config.pbtxt: " in str(caught.value)
    assert reason in str(caught.value)


@given(st.text(alphabet='ab:{}[]<>,;"# \n1-', max_size=60))
def test_whatever_stands_there_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = written(tmp_path_factory.getbasetemp(), text)

    with contextlib.suppress(UnsupportedModelError):
        assert read_config(path) == ((), (), False)


def test_it_stands_beside_the_numbered_directory(tmp_path: Path) -> None:
    version = tmp_path / "net" / "3"
    version.mkdir(parents=True)
    config = written(tmp_path / "net", CONFIG)
    stray = tmp_path / "net" / "weights"
    stray.mkdir()

    assert find_config(version / "model.pt") == config
    assert find_config(version) == config
    assert find_config(tmp_path / "net") == config
    assert find_config(stray / "model.pt") is None
    assert find_config(tmp_path / "net" / "model.pt") is None
