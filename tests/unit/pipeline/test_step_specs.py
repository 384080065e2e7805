"""What is wrong at a step is told with its place."""

import pytest

from headrace.core.spec_mistakes import SpecError
from headrace.pipeline import parse_spec


@pytest.mark.parametrize(
    ("step", "place", "said"),
    [
        ("{kind: classify}", "", "needs either 'labels' or 'labels_file'"),
        ("{kind: classify, labels: [a], labels_file: b}", "", "needs either"),
        ("{kind: classify, labels: []}", "labels", "at least 1"),
        ("{kind: classify, labels: [a, '']}", r"labels\[1\]", "at least 1 character"),
        ("{kind: classify, labels: [a], top_k: 0}", "top_k", "greater than or equal to 1"),
        ("{kind: classify, labels: [a], threshold: .nan}", "threshold", "finite"),
        ("{kind: classify, labels: [a], other_label: b}", "", "'other_label' needs a 'threshold'"),
        ("{kind: classify, labels: [a], activation: relu}", "activation", "'softmax'"),
    ],
)
def test_a_mistake_at_a_step_is_told_with_its_place(step: str, place: str, said: str) -> None:
    where = rf"steps\[1\]\.{place}" if place else r"steps\[1\]"
    with pytest.raises(SpecError, match=rf"{where} \(line 3\): .*{said}"):
        parse_spec(f"steps:\n  - {{kind: tokenizer}}\n  - {step}\n")
