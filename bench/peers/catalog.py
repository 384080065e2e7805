"""The peers: how each is started, what it is sent, what Headrace promises against it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from bench.peers import launch
from bench.peers.launch import SERVERS, Command, Launch, module
from bench.peers.wire import V2_BINARY, V2_JSON, Format, Wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One server to be compared with.

    `times` is how many times its requests/s Headrace promises for small models. `is_python`: a
    server written in Python, with which start and memory are compared. `upstream` is its protocol
    behind our gateway. `pads`: its batches take sentences of different lengths. `warm_s`: how long
    it is kept busy before it is measured. `is_extra`: measured only where it is asked for.
    """

    name: str
    title: str
    start: Callable[[Launch], Command]
    json: Wire
    times: float
    binary: Wire | None = None
    grpc: bool = False
    is_python: bool = True
    upstream: str = "http"
    environment: str = ""
    pads: bool = True
    warm_s: float = 1.0
    is_extra: bool = False

    @property
    def requirements(self) -> str:
        """The name of its requirements file."""
        return self.environment or self.name

    @property
    def part(self) -> str:
        """Under which name its processor time is counted."""
        return f"peer {self.name}"


ROW: Final = Wire(format=Format.ROW, path="/{model}")
ROWS: Final = Wire(format=Format.ROWS, path="/{model}")
RAW: Final = Wire(format=Format.RAW, path="/{model}")

_PEERS: Final = (
    Peer(
        name="mosec",
        title="mosec",
        start=module(
            f"{SERVERS}.mosec_server",
            "--address",
            "127.0.0.1",
            "--port",
            "{port}",
            "--timeout",
            "60000",
            "--log-level",
            "warning",
        ),
        json=ROW,
        binary=RAW,
        times=1.2,
    ),
    Peer(
        name="triton",
        title="Triton, Python backend",
        start=launch.triton,
        json=V2_JSON,
        binary=V2_BINARY,
        grpc=True,
        is_python=False,
        upstream="v2",
        times=4.0,
    ),
    Peer(
        name="fastapi",
        title="FastAPI, tuned",
        start=module("bench.servers.fastapi_tuned", "{path}", "{port}"),
        json=V2_JSON,
        binary=Wire(format=Format.RAW, path="/raw"),
        upstream="v2",
        times=4.4,
        pads=False,
    ),
    Peer(
        name="fastapi-naive",
        title="FastAPI, naive",
        environment="fastapi",
        start=module(f"{SERVERS}.fastapi_naive"),
        json=ROWS,
        times=4.4,
        pads=False,
        is_extra=True,
    ),
    Peer(
        name="mlserver",
        title="MLServer",
        start=module(f"{SERVERS}.mlserver_server"),
        json=V2_JSON,
        grpc=True,
        upstream="v2",
        times=15,
        pads=False,
    ),
    Peer(
        name="kserve",
        title="KServe's Python server",
        start=module(f"{SERVERS}.kserve_server"),
        json=V2_JSON,
        binary=V2_BINARY,
        grpc=True,
        upstream="v2",
        times=15,
        pads=False,
    ),
    Peer(
        name="bentoml",
        title="BentoML",
        start=launch.bentoml,
        json=ROWS,
        times=15,
        pads=False,
    ),
    Peer(
        name="litserve",
        title="LitServe",
        start=module(f"{SERVERS}.litserve_server"),
        json=ROW,
        times=15,
    ),
    Peer(
        name="ray",
        title="Ray Serve",
        start=launch.ray,
        json=ROW,
        binary=RAW,
        times=15,
    ),
    Peer(
        name="torchserve",
        title="TorchServe",
        start=launch.torchserve,
        json=Wire(format=Format.ROW, path="/predictions/{model}"),
        binary=Wire(format=Format.RAW, path="/predictions/{model}"),
        is_python=False,
        upstream="torchserve",
        times=15,
        warm_s=30.0,  # its front is Java, which is compiled while it runs: four times as fast then
    ),
)

PEERS: Final[Mapping[str, Peer]] = {peer.name: peer for peer in _PEERS}
DEFAULT: Final = tuple(name for name, peer in PEERS.items() if not peer.is_extra)
