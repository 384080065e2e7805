"""BentoML: one worker, a batchable API of arrays; how long it waits adapts to what it measured.

A batchable API has one parameter, so models of tokens and a mask are not batched.
"""

from typing import Annotated, Any

import bentoml
import numpy as np
from bentoml.validators import DType

from bench.peers.servers.runtime import Array, Model, max_batch, setting

LATENCY_MS = 100
FLOATS = Annotated[np.ndarray, DType("float32")]
IDS = Annotated[np.ndarray, DType("int64")]


def batching() -> dict[str, Any]:
    """Off where a batch is one row: BentoML takes no size of 1, even where nothing is batched."""
    if max_batch() == 1:
        return {}
    return {"batchable": True, "max_batch_size": max_batch(), "max_latency_ms": LATENCY_MS}


served = bentoml.service(
    workers=1,
    traffic={"timeout": 60, "max_concurrency": 4096},
    logging={"access": {"enabled": False}},
)

if setting("INPUTS") == "input":

    @served
    class Infer:
        """A body is whole rows."""

        def __init__(self) -> None:
            self.model = Model()

        @bentoml.api(route=f"/{setting('NAME')}", **batching())
        def infer(self, input: FLOATS) -> np.ndarray:  # noqa: A002  # as the model calls it
            """The only output."""
            return _only(self.model.run({"input": input}))

else:

    @served
    class Infer:  # type: ignore[no-redef]
        """A body is whole rows."""

        def __init__(self) -> None:
            self.model = Model()

        @bentoml.api(route=f"/{setting('NAME')}")
        def infer(self, input_ids: IDS, attention_mask: IDS) -> np.ndarray:
            """The only output."""
            return _only(self.model.run({"input_ids": input_ids, "attention_mask": attention_mask}))


def _only(answers: dict[str, Array]) -> Array:
    (answer,) = answers.values()
    return answer
