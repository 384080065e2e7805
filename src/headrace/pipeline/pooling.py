"""Token vectors to one vector a row, as sentence encoders were trained to be read."""

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np

from headrace.core import VARIABLE, Datatype, ModelSignature, Tensors, TensorSpec
from headrace.pipeline.spec import PoolSpec
from headrace.pipeline.surroundings import Surroundings

VECTORS: Final = "last_hidden_state"
MASK: Final = "attention_mask"
POOLED: Final = "embedding"

Mode = Literal["mean", "first", "max"]


class PoolStep:
    """`last_hidden_state` FP32 [N, tokens, size], `attention_mask` to `embedding` FP32 [N, size].

    `mean` as Sentence-BERT has it (Reimers and Gurevych, 2019): over the tokens that the mask
    names. Implements `Model`.
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
        """Pool one batch; a row without tokens comes to zeros."""
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
        """Holds nothing."""


def open_pool(spec: PoolSpec, around: Surroundings) -> PoolStep:
    """The step that `spec` describes, for the vectors that an earlier one gives.

    Raises:
        UnsupportedModelError: None does.
    """
    vectors = around.tensor(VECTORS, spec.inputs)
    return PoolStep(
        spec.mode,
        normalize=spec.normalize,
        mask=around.tensor(MASK, spec.inputs).datatype,
        size=vectors.shape[-1] if vectors.shape else -1,
    )
