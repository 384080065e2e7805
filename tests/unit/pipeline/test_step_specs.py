"""What is wrong at a step is told with its place."""

import pytest

from headrace.core.spec.mistakes import SpecError
from headrace.pipeline import parse_spec

IMAGE = "{kind: image, size: [8, 8], %s}"
MODELS = "models: [a, b]"
CASCADE = "{kind: cascade, models: [a, b], confidence: p, %s}"


@pytest.mark.parametrize(
    ("step", "place", "said"),
    [
        ("{kind: image}", "size", "is missing"),
        ("{kind: image, size: 224}", "size", "should be a list"),
        ("{kind: image, size: [224]}", r"size\[1\]", "is missing"),
        ("{kind: image, size: [0, 8]}", r"size\[0\]", "greater than or equal to 1"),
        ("{kind: image, size: [8, 5000]}", r"size\[1\]", "less than or equal to 4096"),
        (IMAGE % "resize: zoom", "resize", "'stretch', 'crop', 'pad'"),
        (IMAGE % "interpolation: lanczos", "interpolation", "'nearest', 'bilinear', 'bicubic'"),
        (IMAGE % "formats: [EPS]", r"formats\[0\]", "'JPEG', 'PNG'"),
        (IMAGE % "formats: []", "formats", "at least 1"),
        (IMAGE % "color: RGB", "color", "'rgb', 'bgr', 'gray'"),
        (IMAGE % "mean: [1, 2]", "", "'mean' has 2 values for 3 channel"),
        (IMAGE % "std: [1, 2, 3], color: gray", "", "'std' has 3 values for 1 channel"),
        (IMAGE % "std: [1, 0, 1]", "", "'std' must be above 0"),
        (IMAGE % "datatype: UINT8, mean: [1]", "", "need the datatype FP32"),
        (IMAGE % "shorter_side: 9", "", "'shorter_side' needs resize: crop"),
        (IMAGE % "resize: crop, shorter_side: 7", "", "is less than the size"),
        (IMAGE % "fill: 3", "", "'fill' needs resize: pad"),
        (IMAGE % "max_pixels: 100000000", "max_pixels", "less than or equal to 89000000"),
        (IMAGE % "maen: [1]", r"\*", "did you mean 'mean'"),
        ("{kind: tokenizer, offsets: true, pairs: true}", "", "exclude each other"),
        ("{kind: vectorizer}", "path", "is missing"),
        ("{kind: classify}", "", "needs either 'labels' or 'labels_file'"),
        ("{kind: classify, labels: [a], labels_file: b}", "", "needs either"),
        ("{kind: classify, labels: []}", "labels", "at least 1"),
        ("{kind: classify, labels: [a, '']}", r"labels\[1\]", "at least 1 character"),
        ("{kind: classify, labels: [a], top_k: 0}", "top_k", "greater than or equal to 1"),
        ("{kind: classify, labels: [a], threshold: .nan}", "threshold", "finite"),
        ("{kind: classify, labels: [a], other_label: b}", "", "'other_label' needs a 'threshold'"),
        ("{kind: classify, labels: [a], activation: relu}", "activation", "'softmax'"),
        ("{kind: ensemble, models: [a]}", "models", "at least 2"),
        (f"{{kind: ensemble, {MODELS}, combine: median}}", "combine", "'mean', 'weighted'"),
        (f"{{kind: ensemble, {MODELS}, combine: weighted}}", "", "must be set together"),
        (f"{{kind: ensemble, {MODELS}, weights: [1, 2]}}", "", "must be set together"),
        (f"{{kind: ensemble, {MODELS}, combine: weighted, weights: [1]}}", "", "1 weights for 2"),
        (
            f"{{kind: ensemble, {MODELS}, combine: weighted, weights: [0, 0]}}",
            "",
            "must not all be 0",
        ),
        (
            f"{{kind: ensemble, {MODELS}, combine: weighted, weights: [1, -1]}}",
            r"weights\[1\]",
            "greater than or equal to 0",
        ),
        (CASCADE % "threshold: .inf", "threshold", "finite"),
        (CASCADE % "name: x", "threshold", "is missing"),
        ("{kind: cascade, models: [a, b], threshold: 1}", "confidence", "is missing"),
    ],
)
def test_a_mistake_at_a_step_is_told_with_its_place(step: str, place: str, said: str) -> None:
    where = rf"steps\[1\]\.{place}" if place else r"steps\[1\]"
    with pytest.raises(SpecError, match=rf"{where} \(line 3\): .*{said}"):
        parse_spec(f"steps:\n  - {{kind: tokenizer}}\n  - {step}\n")


def test_all_mistakes_come_at_once() -> None:
    yaml = "steps:\n  - {kind: image}\n  - {kind: classify}\n  - {kind: ensemble, models: [a]}\n"
    with pytest.raises(SpecError, match="3 mistakes"):
        parse_spec(yaml)
