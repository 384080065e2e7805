"""Encoders of texts are known by their signatures."""

import pytest

from headrace.core import Datatype, ModelSignature, TensorSpec
from headrace.core.encoders import EncoderTask, encoder_task

BYTES, FP32, FP64 = Datatype.BYTES, Datatype.FP32, Datatype.FP64
Tensor = tuple[str, Datatype, tuple[int, ...]]
TEXT: Tensor = ("text", BYTES, (-1,))
PAIR: Tensor = ("text_pair", BYTES, (-1,))
VECTOR: Tensor = ("embedding", FP32, (-1, 4))
SCORE: Tensor = ("score", FP32, (-1,))
LABEL: Tensor = ("label", BYTES, (-1,))


def signature(
    inputs: list[Tensor], outputs: list[Tensor], *, batched: bool = True
) -> ModelSignature:
    def specs(tensors: list[Tensor]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=n, datatype=d, shape=s) for n, d, s in tensors)

    return ModelSignature(inputs=specs(inputs), outputs=specs(outputs), batched=batched)


@pytest.mark.parametrize(
    ("inputs", "outputs", "task"),
    [
        ([TEXT], [VECTOR], EncoderTask.EMBEDDINGS),
        ([("sentence", BYTES, (-1,))], [LABEL, VECTOR], EncoderTask.EMBEDDINGS),
        ([TEXT, PAIR], [LABEL, SCORE], EncoderTask.RERANK),
        ([TEXT], [LABEL, SCORE], None),
        ([TEXT], [("embedding", FP64, (-1, 4))], None),
        ([TEXT], [("embedding", FP32, (-1,))], None),
        ([("x", FP32, (-1, 4))], [VECTOR], None),
        ([("text", BYTES, (-1, 1))], [VECTOR], None),
        ([TEXT, PAIR], [VECTOR], None),
        ([], [VECTOR], None),
    ],
)
def test_task_follows_from_inputs_and_outputs(
    inputs: list[Tensor], outputs: list[Tensor], task: EncoderTask | None
) -> None:
    assert encoder_task(signature(inputs, outputs)) is task
    assert encoder_task(signature(inputs, outputs, batched=False)) is None
