"""Hugging Face folders with a small ONNX file, whose answers are a line of NumPy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from headrace.core import Array

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "anna", "smith", "lives", "in", "berlin", "a", "b")
IMAGE_PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 6, "width": 8},
    "resample": 2,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.5, 0.6, 0.7],
}


def table(size: int, seed: int = 0) -> Array:
    """One row of scores for each word; each word has another best class."""
    scores = np.random.default_rng(seed).normal(size=(len(WORDS), size)).astype(np.float32)
    scores[np.arange(len(WORDS)), np.arange(len(WORDS)) % size] += 4
    return scores


def write_json(folder: Path, name: str, value: object) -> None:
    """Write a JSON file."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def tokenizer_json() -> str:
    """A tokenizer of words between [CLS] and [SEP], which folds case."""
    special = [
        {
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
            "id": WORDS.index(word),
            "content": word,
            "special": True,
        }
        for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    ]
    template = [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
    ]
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": special,
            "normalizer": {"type": "Lowercase"},
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": template,
                "pair": [*template, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {
                    word: {"id": word, "ids": [WORDS.index(word)], "tokens": [word]}
                    for word in ("[CLS]", "[SEP]")
                },
            },
            "decoder": None,
            "model": {
                "type": "WordLevel",
                "vocab": {word: i for i, word in enumerate(WORDS)},
                "unk_token": "[UNK]",
            },
        }
    )


def write_text(
    folder: Path,
    architecture: str = "BertForSequenceClassification",
    *,
    labels: tuple[str, ...] = ("bad", "ok", "good"),
    onnx_file: str = "model.onnx",
    output: str = "logits",
    **config: Any,  # noqa: ANN401  # any setting
) -> Path:
    """A model of texts: per token the scores of `table`; for whole texts their mean."""
    write_json(
        folder,
        "config.json",
        {
            "architectures": [architecture],
            "model_type": "bert",
            "id2label": {str(i): label for i, label in enumerate(labels)},
            **config,
        },
    )
    (folder / "tokenizer.json").write_text(tokenizer_json())
    is_per_token = not architecture.endswith("ForSequenceClassification")
    file = folder / onnx_file
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(text_model(len(labels), output=output, is_per_token=is_per_token), file)
    return folder


def text_model(size: int, *, output: str, is_per_token: bool) -> Any:  # noqa: ANN401  # onnx ships no types
    """`input_ids`, `attention_mask` INT64 [N, S] to FP32 [N, S, size], or to the mean [N, size]."""
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["scores"])]
    constants = [numpy_helper.from_array(table(size), "table")]
    nodes += [
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["scores", "column"], [output if is_per_token else "masked"]),
    ]
    constants.append(numpy_helper.from_array(np.array([2], np.int64), "last"))
    shape: list[str | int] = ["N", "S", size]
    if not is_per_token:
        shape = ["N", size]
        constants.append(numpy_helper.from_array(np.array([1], np.int64), "tokens"))
        nodes += [
            helper.make_node("ReduceSum", ["masked", "tokens"], ["total"], keepdims=0),
            helper.make_node("ReduceSum", ["mask", "tokens"], ["count"], keepdims=1),
            helper.make_node("Div", ["total", "count"], [output]),
        ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["N", "S"])
        for name in ("input_ids", "attention_mask")
    ]
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)
    return _model(nodes, inputs, result, constants)


def write_images(folder: Path, labels: tuple[str, ...], **processor: Any) -> Path:  # noqa: ANN401  # any setting
    """A model of images: the mean of each channel, times a matrix."""
    write_json(
        folder,
        "config.json",
        {
            "architectures": ["ViTForImageClassification"],
            "model_type": "vit",
            "id2label": {str(i): label for i, label in enumerate(labels)},
        },
    )
    write_json(folder, "preprocessor_config.json", {**IMAGE_PROCESSOR, **processor})
    nodes = [
        helper.make_node("ReduceMean", ["pixel_values"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["means", "matrix"], ["logits"]),
    ]
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["N", 3, "H", "W"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(labels)])
    matrix = numpy_helper.from_array(channel_matrix(len(labels)), "matrix")
    (folder / "onnx").mkdir()
    onnx.save(_model(nodes, [pixels], logits, [matrix]), folder / "onnx" / "model.onnx")
    return folder


def channel_matrix(size: int) -> Array:
    """The matrix of a model of images."""
    return np.random.default_rng(1).normal(size=(3, size)).astype(np.float32)


def _model(nodes: list[Any], inputs: list[Any], output: Any, constants: list[Any]) -> Any:  # noqa: ANN401  # onnx ships no types
    graph = helper.make_graph(nodes, "hub", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model
