"""Which examples were given to a search, or are made up; and which of them calibrate, or teach?"""

from pathlib import Path
from typing import Final

import numpy as np

from headrace.core import HeadraceError, InvalidArgumentError, ModelSignature, Tensors
from headrace.optimize.accuracy import (
    DataWish,
    Examples,
    Texts,
    generated_examples,
    gives_embeddings,
    read_labelled,
)
from headrace.optimize.accuracy.text_cells import takes_tokens
from headrace.optimize.candidate import Teaching
from headrace.optimize.generated_inputs import generated_inputs
from headrace.optimize.search.asked import SearchRequest
from headrace.runtimes import Model

MADE_UP: Final = 256
"""Examples where nobody gave any."""
_TOKENS: Final = 7
"""In a made-up text: no usual width."""
_MOST_TAUGHT: Final = 20_000


def judged_examples(asked: SearchRequest, model: Model, source: Path) -> tuple[Examples, bool]:
    """What candidates are judged by, and whether that was made up.

    Raises:
        InvalidArgumentError: There are none, or they do not fit the model.
    """
    if not asked.data:
        return generated_examples(model, model.signature, MADE_UP, asked.seed), True
    wish = _wish(asked, is_apart=_embeds(model))
    found = read_labelled(Path(asked.data), model.signature, wish, beside=source)
    if not len(found):
        msg = f"{asked.data} holds no examples"
        raise InvalidArgumentError(msg)
    return found, False


def made_of_size(signature: ModelSignature, size: int, seed: int) -> Examples:
    """Made-up examples whose variable axes have one size."""
    rows: list[Tensors] = []
    draw = seed
    while len(rows) < MADE_UP:
        made = generated_inputs(signature, variable=size, draw=draw)
        draw += 1
        if not signature.batched:
            rows.append(made)
            continue
        count = len(next(iter(made.values())))
        rows += [{name: array[i : i + 1] for name, array in made.items()} for i in range(count)]
    note = f"made-up inputs of size {size}, as no data was given"
    return Examples(inputs=rows[:MADE_UP], batched=signature.batched, notes=(note,))


def taught_examples(
    asked: SearchRequest, examples: Examples, signature: ModelSignature, source: Path
) -> Examples | None:
    """The examples that none are judged by; None where nobody gave any."""
    if not asked.teach:
        return None
    most, is_apart = max(_MOST_TAUGHT, asked.calibrate), examples.texts is Texts.APART
    wish = _wish(asked, most, is_apart=is_apart)
    return read_labelled(Path(asked.teach), signature, wish, beside=source)


def calibration_of(
    asked: SearchRequest, examples: Examples, taught: Examples | None
) -> tuple[Examples, frozenset[int]]:
    """What is calibrated with, without labels, and which places of `examples` that is."""
    given = examples if taught is None else taught
    count = min(asked.calibrate, len(given))
    places = np.sort(np.random.default_rng(asked.seed).permutation(len(given))[:count])
    is_judged_by = asked.data and taught is None
    return given.subset(places).alone(), frozenset(places.tolist()) if is_judged_by else frozenset()


def teaching_of(taught: Examples | None) -> Teaching | None:
    """What is learnt from."""
    if taught is None:
        return None
    found = taught.subset(range(min(len(taught), _MOST_TAUGHT))).alone()
    labels = None if found.labels is None else found.labels.tolist()
    return Teaching(examples=found.inputs, labels=labels)


def _wish(asked: SearchRequest, limit: int | None = None, *, is_apart: bool) -> DataWish:
    return DataWish(
        label=asked.label,
        text=asked.text,
        tokenizer=Path(asked.tokenizer) if asked.tokenizer else None,
        limit=limit,
        is_apart=is_apart,
    )


def _embeds(model: Model) -> bool:
    """Whether a model of token ids gives embeddings, which are compared with those of others."""
    if not takes_tokens(model.signature) or not model.signature.batched:
        return False
    rows = generated_inputs(model.signature, variable=_TOKENS)
    sizes = {array.shape[1] for array in rows.values()}
    one = {name: array[:1] for name, array in rows.items()}
    try:
        return gives_embeddings(model.run(one), length=max(sizes))
    except HeadraceError:
        return False
