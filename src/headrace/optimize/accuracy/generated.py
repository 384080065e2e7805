"""Examples where nobody gave any: made up, without labels, the same ones every time.

Models of text are asked random tokens of random lengths; the others what `generated_inputs` makes.
They show whether two models compute the same, and not whether either is right on real requests.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np

from headrace.core import VARIABLE, HeadraceError, ModelSignature, Tensors
from headrace.optimize.accuracy.examples import Examples
from headrace.optimize.accuracy.text_cells import takes_tokens, token_kinds
from headrace.optimize.generated_inputs import generated_inputs, sizes_that_run
from headrace.pipeline.tokenizing import IDS, MASK
from headrace.runtimes import Model

_VOCABULARIES: Final = (30_000, 8_000, 1_000, 100, 2)
_LENGTHS: Final = (4, 64)
_FIRST_WORD: Final = 1_000
"""Below it, large vocabularies have special and unused tokens."""
_NOTE: Final = "made-up inputs, as no data was given"


def generated_examples(model: Model, signature: ModelSignature, n: int, seed: int) -> Examples:
    """`n` examples that the model runs on.

    Raises:
        UnsupportedModelError: It does not run on made-up inputs.
    """
    made = _tokens(model, signature, n, seed) if takes_tokens(signature) else []
    if not made:
        source = _generated(model, signature, seed)
        made = [next(source) for _ in range(n)]
    return Examples(inputs=made, batched=signature.batched, notes=(_NOTE,))


def _generated(model: Model, signature: ModelSignature, seed: int) -> Iterator[Tensors]:
    """Rows of one size after the other, from all over what was made of it."""
    sizes = sizes_that_run(model)
    draw = 0
    while True:
        for size in sizes:
            made = generated_inputs(signature, variable=size, draw=seed * 1_000 + draw)
            draw += 1
            if not signature.batched:
                yield made
                continue
            rows = len(next(iter(made.values())))
            for row in np.linspace(0, rows - 1, min(rows, 16), dtype=int).tolist():
                yield {name: array[row : row + 1] for name, array in made.items()}


def _tokens(model: Model, signature: ModelSignature, n: int, seed: int) -> list[Tensors]:
    """Random tokens; none where the model runs on no vocabulary that is tried."""
    for size in _VOCABULARIES:
        rng = np.random.default_rng(seed)
        made = [_request(signature, size, rng) for _ in range(n)]
        highest = {name: array.copy() for name, array in made[0].items()} if made else {}
        for name, kind in token_kinds(signature).items():
            if kind == IDS and highest:
                highest[name][...] = size - 1
        try:
            for request in (highest, *made[:2]):
                if request:
                    model.run(request)
        except HeadraceError:
            continue
        return made
    return []


def _request(signature: ModelSignature, vocabulary: int, rng: np.random.Generator) -> Tensors:
    sizes = {spec.shape[1] for spec in signature.inputs} - {VARIABLE}
    length = int(rng.integers(*_LENGTHS)) if not sizes else min(sizes)
    kinds = token_kinds(signature)
    first = min(_FIRST_WORD, vocabulary // 10)
    made = {}
    for spec in signature.inputs:
        size = length if spec.shape[1] == VARIABLE else spec.shape[1]
        row = np.zeros((1, size), spec.datatype.dtype)
        if kinds[spec.name] == IDS:
            row[0, :] = rng.integers(first, vocabulary, size)
        elif kinds[spec.name] == MASK:
            row[0, :] = 1
        made[spec.name] = row
    return made
