"""Steps on a model's outputs: scores to class names, and token vectors to one vector per row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

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
from headrace.pipeline.context import StepContext
from headrace.pipeline.spec import MAX_LABELS, ClassifySpec, PoolingSpec

LOGITS: Final = "logits"
_MAX_FILE_BYTES: Final = 64 << 20
_FLOATS: Final = (Datatype.FP16, Datatype.FP32, Datatype.FP64)
_BINARY: Final = 2


class ClassifyStep:
    """Step from `logits` [N, classes] to `label` BYTES [N] and `score` FP32 [N], or the best k.

    Among equal scores the class listed first wins. Implements `Model`.
    """

    concurrent = True

    def __init__(self, spec: ClassifySpec, labels: Sequence[str], logits: TensorSpec) -> None:
        shape = (VARIABLE,) if spec.top_k is None else (VARIABLE, spec.top_k)
        plural = "" if spec.top_k is None else "s"
        self.signature = ModelSignature(
            inputs=(TensorSpec(name=LOGITS, datatype=logits.datatype, shape=logits.shape),),
            outputs=(
                TensorSpec(name=f"label{plural}", datatype=Datatype.BYTES, shape=shape),
                TensorSpec(name=f"score{plural}", datatype=Datatype.FP32, shape=shape),
            ),
            batched=True,
        )
        self._spec = spec
        self._names = [output.name for output in self.signature.outputs]
        self._labels = np.array([label.encode() for label in labels], np.object_)
        self._other = spec.other_label.encode()

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Classify one batch.

        Raises:
            RuntimeFailedError: The model returned NaN, or another number of classes than labels.
        """
        del outputs
        numbers = self._numbers(inputs[LOGITS])
        # Classes are ranked by logits: close ones may have equal probabilities.
        best = _best(numbers, self._spec.top_k or 1)
        scores = np.take_along_axis(self._probabilities(numbers), best, axis=1).astype(np.float32)
        labels = self._labels[best]
        if self._spec.threshold is not None:
            labels[scores < self._spec.threshold] = self._other
        if self._spec.top_k is None:
            labels, scores = labels[:, 0], scores[:, 0]
        return dict(zip(self._names, (labels, np.ascontiguousarray(scores)), strict=True))

    def close(self) -> None:
        """Do nothing; the step only holds memory."""

    def _numbers(self, logits: Array) -> Array:
        """Return [N, classes], in floats wide enough to sum."""
        numbers = logits.reshape(len(logits), -1) if logits.ndim == 1 else logits
        if numbers.dtype == np.float16:
            numbers = numbers.astype(np.float32)
        # A row with NaN has no best class.
        wrong = np.isnan(numbers).any(axis=1)
        if wrong.any():
            msg = f"the model returned NaN for row {int(wrong.argmax())}"
            raise RuntimeFailedError(msg)
        if numbers.shape[1] == 1 and len(self._labels) == _BINARY:
            other = -numbers if self._spec.activation == "sigmoid" else 1 - numbers
            numbers = np.concatenate((other, numbers), axis=1)
        if numbers.shape[1] != len(self._labels):
            msg = (
                f"the model returned {numbers.shape[1]} classes, but there are "
                f"{len(self._labels)} labels"
            )
            raise RuntimeFailedError(f"{msg} labels")
        return numbers

    def _probabilities(self, numbers: Array) -> Array:
        if self._spec.activation == "softmax":
            return softmax(numbers)
        return _sigmoid(numbers) if self._spec.activation == "sigmoid" else numbers


def open_classify(spec: ClassifySpec, around: StepContext) -> ClassifyStep:
    """Return the step that `spec` describes, for the scores of an earlier step.

    Raises:
        UnsupportedModelError: No step gives scores, they have another form, or the labels do not
            fit.
    """
    logits = around.tensor(LOGITS, spec.inputs)
    description = f"'{logits.name}' is {logits.datatype} with shape {list(logits.shape)}"
    if logits.datatype not in _FLOATS or len(logits.shape) not in {1, 2}:
        raise UnsupportedModelError(f"{description}; it must be floats with shape [-1, classes]")
    labels = spec.labels
    if labels is None:
        labels = _read_labels(around.file(spec.labels_file or ""))
    classes = 1 if len(logits.shape) == 1 else logits.shape[1]
    is_binary = classes == 1 and len(labels) == _BINARY and spec.activation != "softmax"
    if classes not in {VARIABLE, len(labels)} and not is_binary:
        msg = f"{description}, so it needs {classes} labels, but there are {len(labels)}"
        raise UnsupportedModelError(msg)
    if (spec.top_k or 1) > len(labels):
        raise UnsupportedModelError(
            f"top_k is {spec.top_k}, but there are only {len(labels)} labels"
        )
    return ClassifyStep(spec, labels, logits)


def _read_labels(path: Path) -> tuple[str, ...]:
    """Return one label per line; empty lines at the end are ignored."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise UnsupportedModelError(f"{path.name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UnsupportedModelError(
            f"{path.name}: is not valid UTF-8 (byte {error.start})"
        ) from None
    lines = [line.strip() for line in text.rstrip().split("\n")]
    if len(raw) > _MAX_FILE_BYTES or len(lines) > MAX_LABELS:
        raise UnsupportedModelError(
            f"{path.name}: has more than {MAX_LABELS} labels, or more than 64 MiB"
        )
    if "" in lines:
        raise UnsupportedModelError(f"{path.name}: line {lines.index('') + 1} is empty")
    return tuple(lines)


def softmax(logits: Array) -> Array:
    """Return the softmax of each row; no exponential overflows, and equal infinities share."""
    highest = logits.max(axis=1, keepdims=True, initial=-np.inf)
    infinite = np.isinf(highest)
    if infinite.any():
        logits = np.where(infinite, np.where(logits == highest, 0, -np.inf), logits)
        highest = np.where(infinite, 0, highest)
    with np.errstate(over="ignore"):  # to minus infinity, whose exponential is 0
        powers: Array = np.exp(logits - highest)
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def _sigmoid(logits: Array) -> Array:
    """Return the sigmoid of each number, with exponentials of negative ones only."""
    powers = np.exp(-np.abs(logits))
    sigmoid: Array = np.where(logits >= 0, 1, powers) / (1 + powers)
    return sigmoid


def _best(values: Array, count: int) -> Array:
    """Return the indices of each row's largest values, descending; the first of equal ones."""
    if count == 1:
        first: Array = values.argmax(axis=1)
        return first[:, np.newaxis]
    order: Array = np.argsort(-values, axis=1, kind="stable")
    return order[:, :count]


VECTORS: Final = "last_hidden_state"
MASK: Final = "attention_mask"
POOLED: Final = "embedding"
Mode = Literal["mean", "first", "max"]


class PoolStep:
    """Step from `last_hidden_state` FP32 [N, tokens, size] to `embedding` FP32 [N, size].

    Also reads `attention_mask`. `mean` is that of Sentence-BERT (Reimers and Gurevych, 2019): over
    the tokens whose mask is 1. Implements `Model`.
    """

    concurrent = True

    def __init__(self, mode: Mode, *, normalize: bool, mask: Datatype, size: int) -> None:
        vectors = (VARIABLE, VARIABLE, size)
        self.signature = ModelSignature(
            inputs=(
                TensorSpec(name=VECTORS, datatype=Datatype.FP32, shape=vectors),
                TensorSpec(name=MASK, datatype=mask, shape=(VARIABLE, VARIABLE)),
            ),
            outputs=(TensorSpec(name=POOLED, datatype=Datatype.FP32, shape=(VARIABLE, size)),),
            batched=True,
        )
        self._mode = mode
        self._normalizes = normalize

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Pool one batch; a row without tokens gives zeros."""
        del outputs
        vectors, mask = inputs[VECTORS], inputs[MASK] != 0
        if self._mode == "first":
            pooled = vectors[:, 0] if vectors.shape[1] else vectors.sum(axis=1)
        elif self._mode == "max":
            hidden = np.where(mask[..., np.newaxis], vectors, -np.inf)
            pooled = hidden.max(axis=1, initial=-np.inf)
            pooled[~mask.any(axis=1)] = 0
        else:
            weights = mask.astype(np.float32)
            weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1)
            pooled = np.matmul(weights[:, np.newaxis, :], vectors)[:, 0]
        if self._normalizes:
            lengths = np.linalg.norm(pooled, axis=1, keepdims=True)
            pooled = pooled / np.maximum(lengths, np.float32(1e-12))
        return {POOLED: np.ascontiguousarray(pooled, dtype=np.float32)}

    def close(self) -> None:
        """Do nothing; the step holds no resources."""


def open_pool(spec: PoolingSpec, around: StepContext) -> PoolStep:
    """Return the step that `spec` describes, for the vectors of an earlier step.

    Raises:
        UnsupportedModelError: No step gives vectors.
    """
    vectors = around.tensor(VECTORS, spec.inputs)
    return PoolStep(
        spec.mode,
        normalize=spec.normalize,
        mask=around.tensor(MASK, spec.inputs).datatype,
        size=vectors.shape[-1] if vectors.shape else -1,
    )
