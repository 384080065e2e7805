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
        question="Requests/s with 32 connections and with one.",
        asks={
            "mlp": saturation.whole,
            "gbdt": saturation.busy,
            "minilm": saturation.busy,
            "busy": saturation.busy,
        },
    ),
    Suite(
        name="latency",
        question="Latency at 25, 50 and 75 % of a capacity.",
        asks={"mlp": latency.run},
    ),
    Suite(
        name="goodput",
        question="Largest rate with 99 % of the answers within 100 ms.",
        asks={"minilm": goodput.run},
    ),
    Suite(
        name="burst",
        question="Answers in a second with ten times the load.",
        asks={"busy": strain.burst},
    ),
    Suite(
        name="overload",
        question="Answers in time at three times the capacity.",
        asks={"busy": strain.overload},
    ),
    Suite(
        name="image",
        question="Throughput of a ResNet-18 with 600 kB in each request.",
        asks={"resnet": image.run},
    ),
)
"""Asked while both servers are up."""

OWN: Final = {
    "cost": "Time to the first answer, and memory.",
    "gateway": "Requests/s, each behind the same Envoy.",
    "grpc": "Unary calls/s, Headrace through Envoy, peers without a gateway.",
}
"""They start their own servers; gRPC is measured while those behind gateways are up."""
ALONE: Final = {
    "bare": "ONNX Runtime without a server.",
    "floor": "Largest such rate of bare ONNX Runtime, without a server.",
    "neighbour": "Latency of a model while another, large one is loaded.",
    "many": "Latency of 8 encoders in one pool compared with one.",
}
"""Of Headrace, without a peer."""
NAMES: Final = (*(suite.name for suite in PAIRED), *OWN, *ALONE)
