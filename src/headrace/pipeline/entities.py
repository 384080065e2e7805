"""Step from the scores of each token to the entities of a text (token classification)."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    Datatype,
    ModelSignature,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
    UnsupportedModelError,
)
from headrace.core.encoders import TEXT
from headrace.pipeline.classify import LOGITS, softmax
from headrace.pipeline.context import StepContext
from headrace.pipeline.spec import EntitiesSpec
from headrace.pipeline.tokenize import OFFSETS, texts_of

ENTITIES: Final = "entities"
_FLOATS: Final = (Datatype.FP16, Datatype.FP32, Datatype.FP64)
_TOKEN_AXES: Final = 3


class EntitiesStep:
    """Step from the `logits` [N, tokens, labels] of texts to `entities` BYTES [N], as JSON lists.

    Also reads `text` BYTES [N] and the tokens' `offsets` [N, tokens, 2]. Each text has its own
    number of entities, so a row is one JSON text: padding to the longest list would make an answer
    depend on the other rows of the batch. Entries have the keys, order and scores of the pipeline
    of transformers; `word` is the part of the text itself, not the tokenizer's normalized form.
    Implements `Model`.
    """

    concurrent = True

    def __init__(self, spec: EntitiesSpec, logits: TensorSpec) -> None:
        self.signature = ModelSignature(
            inputs=(
                TensorSpec(name=TEXT, datatype=Datatype.BYTES, shape=(VARIABLE,)),
                TensorSpec(name=LOGITS, datatype=logits.datatype, shape=logits.shape),
                TensorSpec(name=OFFSETS, datatype=Datatype.INT64, shape=(VARIABLE, VARIABLE, 2)),
            ),
            outputs=(TensorSpec(name=ENTITIES, datatype=Datatype.BYTES, shape=(VARIABLE,)),),
            batched=True,
        )
        self._labels = spec.labels
        self._ignored = frozenset(spec.ignored)
        self._joins = spec.aggregation == "simple"

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Return the entities of one batch.

        Raises:
            RuntimeFailedError: The model returned NaN, or another number of classes than labels.
        """
        del outputs
        logits, offsets = inputs[LOGITS], inputs[OFFSETS]
        if logits.shape[2] != len(self._labels):
            msg = f"the model returned {logits.shape[2]} classes for {len(self._labels)} labels"
            raise RuntimeFailedError(msg)
        rows = np.empty(len(logits), np.object_)
        for row, text in enumerate(texts_of(inputs[TEXT])):
            (tokens,) = np.nonzero(offsets[row, :, 0] >= 0)
            scores = softmax(logits[row, tokens].astype(np.float32, copy=False))
            if np.isnan(scores).any():
                raise RuntimeFailedError(f"the model returned NaN for row {row}")
            rows[row] = msgspec.json.encode(
                list(self._entities(text, tokens, scores, offsets[row, tokens]))
            )
        return {ENTITIES: rows}

    def close(self) -> None:
        """Do nothing; the step only holds memory."""

    def _entities(
        self, text: str, tokens: Array, scores: Array, offsets: Array
    ) -> Iterator[dict[str, Any]]:
        best = scores.argmax(axis=1)
        best_scores = scores[np.arange(len(best)), best]
        labels = [self._labels[i] for i in best.tolist()]
        spans = offsets.tolist()
        if not self._joins:
            for i, label in enumerate(labels):
                if label not in self._ignored:
                    start, end = spans[i]
                    score, index = float(best_scores[i]), int(tokens[i])
                    yield {"entity": label, "score": score, "index": index} | _part(
                        text, start, end
                    )
            return
        for first, after in _groups(labels):
            group = labels[first].split("-", 1)[-1]
            if group not in self._ignored:
                score = float(best_scores[first:after].mean())
                yield {"entity_group": group, "score": score} | _part(
                    text, spans[first][0], spans[after - 1][1]
                )


def open_entities(spec: EntitiesSpec, around: StepContext) -> EntitiesStep:
    """Return the step that `spec` describes, for the scores of an earlier step.

    Raises:
        UnsupportedModelError: No step gives scores or offsets, or they have another form.
    """
    around.tensor(OFFSETS, spec.inputs)
    logits = around.tensor(LOGITS, spec.inputs)
    shape, count = logits.shape, len(spec.labels)
    description = f"'{logits.name}' is {logits.datatype} with shape {list(shape)}"
    if logits.datatype not in _FLOATS or len(shape) != _TOKEN_AXES:
        msg = f"{description}; it must be floats with shape [-1, tokens, labels]"
        raise UnsupportedModelError(msg)
    if shape[2] not in {VARIABLE, count}:
        msg = f"{description}, so it needs {shape[2]} labels, but there are {count}"
        raise UnsupportedModelError(msg)
    return EntitiesStep(spec, logits)


def _part(text: str, start: int, end: int) -> dict[str, Any]:
    return {"word": text[start:end], "start": start, "end": end}


def _groups(labels: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the bounds of runs of tokens with the same entity; B- begins a new one."""
    start = 0
    for i in range(1, len(labels) + 1):
        if i < len(labels):
            begins, entity = _split(labels[i])
            if not begins and entity == _split(labels[i - 1])[1]:
                continue
        if i > start:
            yield start, i
        start = i


def _split(label: str) -> tuple[bool, str]:
    """Return whether a label begins an entity, and the entity; a label without prefix goes on."""
    if label.startswith(("B-", "I-")):
        return label.startswith("B-"), label[2:]
    return False, label
