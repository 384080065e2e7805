"""How alike does a model find two texts? The cosine of its embeddings, as bi-encoders are used.

Reimers and Gurevych 2019, "Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks": each
text is embedded alone, by the mean over its tokens or by the first one.
"""

from typing import Final

import numpy as np

from headrace.core import Array, RuntimeFailedError, Tensors
from headrace.optimize.accuracy.asking import Run
from headrace.optimize.accuracy.pair_requests import first_of, second_of
from headrace.pipeline.tokenizing import MASK

_MASKS: Final = (MASK, "input_mask")
_LEAST_WIDTH: Final = 32
"""Narrower rows are scores of classes."""
_ROWS: Final = 2
_TOKENS: Final = 3


def gives_embeddings(answer: Tensors, *, length: int) -> bool:
    """Whether a model's outputs are embeddings, of texts or of tokens, and nothing else.

    Args:
        answer: To one row of so many tokens.
    """
    shapes = [array.shape for array in answer.values() if array.dtype.kind == "f"]
    of_tokens = [shape for shape in shapes if len(shape) == _TOKENS and shape[1] == length]
    of_texts = [shape for shape in shapes if len(shape) == _ROWS and shape[1] >= _LEAST_WIDTH]
    return bool(shapes) and len(of_tokens) + len(of_texts) == len(answer)


def cosine_run(run: Run) -> Run:
    """Answers to pairs, `[rows]` cosines for each way to embed a text, by a model of one text."""

    def compared(pairs: Tensors) -> Tensors:
        one, other = first_of(pairs), second_of(pairs)
        first, second = (_embedded(run(texts), texts) for texts in (one, other))
        if not first or first.keys() != second.keys():
            raise RuntimeFailedError("no output holds embeddings of the texts")
        return {name: _cosines(first[name], second[name]) for name in first}

    return compared


def _embedded(answer: Tensors, texts: Tensors) -> Tensors:
    """Embeddings `[rows, width]`, by how they were made."""
    mask = next((texts[name] for name in _MASKS if name in texts), None)
    if mask is None:
        mask = np.ones_like(next(iter(texts.values())))
    found: dict[str, Array] = {}
    for name, array in answer.items():
        if array.dtype.kind != "f":
            continue
        if array.ndim == _TOKENS and array.shape[:2] == mask.shape:
            weights = mask[..., None].astype(np.float64)
            found[f"{name}, mean"] = (array * weights).sum(axis=1) / weights.sum(axis=1)
            found[f"{name}, first"] = array[:, 0, :].astype(np.float64)
        elif array.ndim == _ROWS and array.shape[1] > 1:
            found[name] = array.astype(np.float64)
    return found


def _cosines(first: Array, second: Array) -> Array:
    """`[rows]`; of an embedding of nothing, 0."""
    together = (first * second).sum(axis=1)
    sizes = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    found: Array = np.divide(together, sizes, out=np.zeros_like(together), where=sizes != 0)
    return found
