import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.sources.hub import needed_files

COMMON = ["config.json", "tokenizer.json", "vocab.txt"]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (["model.safetensors", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"],
         ["model.safetensors"]),
        (["pytorch_model.bin", "tf_model.h5", "rust_model.ot"], ["pytorch_model.bin"]),
        (["tf_model.h5", "flax_model.msgpack"], ["tf_model.h5"]),
        (
            ["model-00001-of-2.safetensors", "model-00002-of-2.safetensors",
             "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"],
            ["model-00001-of-2.safetensors", "model-00002-of-2.safetensors",
             "model.safetensors.index.json"],
        ),
        (
            ["onnx/model.onnx", "onnx/model_int8.onnx", "onnx/model_q4.onnx", "model.safetensors"],
            ["onnx/model.onnx"],
        ),
        (
            ["model.onnx", "model.onnx_data", "model_q4.onnx", "model_q4.onnx_data"],
            ["model.onnx", "model.onnx_data"],
        ),
        (["encoder.onnx", "decoder.onnx"], ["encoder.onnx", "decoder.onnx"]),
        (["model.safetensors", "openvino/model.bin", "coreml/m.mlmodel", "openvino_model.bin"],
         ["model.safetensors"]),
        (["model.skops"], ["model.skops"]),
        (["pytorch_model.bin", "training_args.bin", "optimizer.pt"], ["pytorch_model.bin"]),
    ],
)  # fmt: skip
def test_weights_of_one_framework_are_chosen(weights: list[str], expected: list[str]) -> None:
    assert needed_files([*COMMON, *weights]) == {*COMMON, *expected}


def test_documentation_and_hidden_files_are_left_out() -> None:
    files = ["README.md", ".gitattributes", "images/plot.png", "1_Pooling/config.json", *COMMON]

    assert needed_files(files) == {"1_Pooling/config.json", *COMMON}


_FILES = st.lists(
    st.sampled_from(
        ["a.onnx", "a_x.onnx", "a.onnx_data", "b.safetensors", "b.bin", "c.h5", "config.json",
         "d/e.onnx", "b.bin.index.json", "README.md", "f.gguf", "g.pkl"]
    ),
    unique=True,
)  # fmt: skip


@given(_FILES)
def test_choice_is_a_subset_that_does_not_change_when_chosen_from_again(files: list[str]) -> None:
    chosen = needed_files(files)

    assert chosen <= set(files)
    assert needed_files(sorted(chosen)) == chosen
    assert chosen or not set(files) - {"README.md", "b.bin.index.json", "a.onnx_data"}
