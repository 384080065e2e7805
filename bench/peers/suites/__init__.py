"""The questions that a pair of servers is asked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bench.peers.pair import Pair
from bench.peers.rows import Row
from bench.peers.suites import goodput, image, latency, saturation, strain

Ask = Callable[[Pair], Sequence[Row]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A question, and the models it is asked with, each with its way of asking."""

    name: str
    question: str
    asks: Mapping[str, Ask]


PAIRED: Final = (
    Suite(
        name="saturation",
        question="How many requests/s, with 32 connections busy and with one?",
        asks={
            "mlp": saturation.whole,
            "gbdt": saturation.busy,
            "minilm": saturation.busy,
            "busy": saturation.busy,
        },
    ),
    Suite(
        name="latency",
        question="How long do callers wait at a quarter, half and three quarters of a capacity?",
        asks={"mlp": latency.run},
    ),
    Suite(
        name="goodput",
        question="At what rate are 99 % of the answers there within 100 ms?",
        asks={"minilm": goodput.run},
    ),
    Suite(
        name="burst",
        question="What is left of a second in which ten times as many ask?",
        asks={"busy": strain.burst},
    ),
    Suite(
        name="overload",
        question="What is answered in time at three times the capacity?",
        asks={"busy": strain.overload},
    ),
    Suite(
        name="image",
        question="What is left of a ResNet-18's speed with 600 kB in each request?",
        asks={"resnet": image.run},
    ),
)
"""Asked while both servers are up."""

OWN: Final = {
    "cost": "How soon does it answer, and what does it weigh?",
    "gateway": "How many requests/s, each behind the same Envoy?",
    "grpc": "How many unary calls/s, ours through Envoy, theirs without a gateway?",
}
"""They start their own servers; gRPC is measured while those behind gateways are up."""
ALONE: Final = {
    "bare": "How fast is ONNX Runtime without a server?",
    "floor": "Up to what rate does bare ONNX Runtime, without a server, keep that?",
    "neighbour": "What does loading a large model do to its neighbour's callers?",
    "many": "How much longer do callers of 8 encoders in one pool wait than those of one?",
}
"""Of Headrace, without a peer."""
NAMES: Final = (*(suite.name for suite in PAIRED), *OWN, *ALONE)
