"""Token rows as real sentences have them, and whether the embeddings mean what they should."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from bench.bare import pad

Array = np.ndarray[Any, Any]

# How many of 2,693 film-review sentences (SST-2, dev and test) have 3, 4, 5 ... 59 tokens in
# MiniLM's vocabulary, both ends included. Where no text is at hand, lengths are drawn from these.
# fmt: off
LENGTH_COUNTS: Final = (
    3, 8, 6, 25, 31, 59, 63, 80, 92, 61, 91, 83, 88, 81, 112, 77, 105, 91, 99, 82, 100, 94, 92,
    99, 110, 78, 58, 86, 55, 66, 51, 59, 57, 44, 35, 40, 39, 37, 27, 15, 18, 17, 9, 10, 6, 11, 8,
    4, 8, 6, 7, 3, 1, 1, 1, 3, 1,
)
# fmt: on
FIRST_LENGTH: Final = 3
VOCABULARY: Final = (1000, 30000)
CLS, SEP = 101, 102
SEED: Final = 20240


def drawn_rows(count: int) -> list[Array]:
    """Random tokens with lengths as in real sentences; the work depends on lengths only."""
    random = np.random.default_rng(SEED)
    shares = np.array(LENGTH_COUNTS) / sum(LENGTH_COUNTS)
    lengths = random.choice(len(shares), size=count, p=shares) + FIRST_LENGTH
    return [
        np.concatenate(([CLS], random.integers(*VOCABULARY, length - 2), [SEP])).astype(np.int64)
        for length in lengths
    ]


def sentence_rows(tokenizer: Path, data: Path, count: int) -> list[Array]:
    """The first `count` sentences of the SST-2 dev set as tokens."""
    return tokenise(tokenizer, sentences(data, count))


def sentences(data: Path, count: int) -> list[str]:
    """The first `count` sentences of the SST-2 dev set."""
    lines = (data / "sst2" / "sst2-dev.tsv").read_text().splitlines()
    return [line.rsplit(maxsplit=1)[0] for line in lines[:count]]


def tokenise(tokenizer: Path, texts: Sequence[str]) -> list[Array]:
    """Token rows without padding."""
    from tokenizers import Tokenizer  # noqa: PLC0415  (only needed with labelled text)

    encoder = Tokenizer.from_file(str(tokenizer))
    encoder.no_padding()
    return [np.array(one.ids, np.int64) for one in encoder.encode_batch(list(texts))]


def spearman_on_stsb(bare: ort.InferenceSession, tokenizer: Path, data: Path) -> float:
    """Rank correlation of cosine similarity with human judgement on the STS-B test pairs."""
    with (data / "stsb" / "stsb-en-test.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    first = _embed(bare, tokenise(tokenizer, [line[0] for line in lines]))
    second = _embed(bare, tokenise(tokenizer, [line[1] for line in lines]))
    judged = np.array([float(line[2]) for line in lines])
    return spearman((first * second).sum(axis=1), judged)


def spearman(left: Array, right: Array) -> float:
    """Correlation of ranks; equal values share their mean rank."""
    return float(np.corrcoef(_ranks(left), _ranks(right))[0, 1])


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def _embed(bare: ort.InferenceSession, rows: Sequence[Array]) -> Array:
    return np.concatenate([bare.run(None, pad([row]))[0] for row in rows])
