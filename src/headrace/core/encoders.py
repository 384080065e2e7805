"""Encoder of texts: a model that OpenAI's embeddings or a rerank request can be sent to.

The signature alone decides that, so a control plane knows it without loading the model.
"""

from enum import StrEnum
from typing import Final

from headrace.core.datatypes import Datatype
from headrace.core.signature import ModelSignature

TEXT: Final = "text"
TEXT_PAIR: Final = "text_pair"
"""Second text of a row: the document that a cross-encoder compares with a query."""
EMBEDDING: Final = "embedding"
SCORE: Final = "score"
TOKEN_COUNT: Final = "#tokens"  # noqa: S105  # of a text
"""Output outside of signatures: the tokens of each row, INT64 [N], after truncation, unpadded.

A model with the attribute `counts_tokens` returns it to requests that name it.
"""


class EncoderTask(StrEnum):
    """What an encoder computes."""

    EMBEDDINGS = "embeddings"
    """One vector of each text: one input of texts, and `embedding` FP32 [N, size]."""
    RERANK = "rerank"
    """One score of each pair of texts: `text` and `text_pair`, and `score` FP32 [N]."""


def serves_openai(signature: ModelSignature) -> bool:
    """Whether replicas of the model answer OpenAI's API: encoders, and language models."""
    return not signature.has_tensors or encoder_task(signature) is not None


def encoder_task(signature: ModelSignature) -> EncoderTask | None:
    """Return the task of an encoder of texts; None for other models."""
    inputs = {spec.name for spec in signature.inputs}
    ranks = {
        spec.name: len(spec.shape) for spec in signature.outputs if spec.datatype is Datatype.FP32
    }
    if not signature.batched or any(
        spec.datatype is not Datatype.BYTES or len(spec.shape) != 1 for spec in signature.inputs
    ):
        return None
    if len(inputs) == 1 and ranks.get(EMBEDDING) == 2:  # noqa: PLR2004  # rows and size
        return EncoderTask.EMBEDDINGS
    if inputs == {TEXT, TEXT_PAIR} and ranks.get(SCORE) == 1:
        return EncoderTask.RERANK
    return None
