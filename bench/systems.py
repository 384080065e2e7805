"""The systems that are compared, each up inside a `with` block and gone after it."""

import http.client
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench import processes
from bench.payloads import Payload, json_payload
from headrace.core import BatchingSpec, ReplicaSettings

FASTAPI = "fastapi"
GRPC_AIO = "grpc.aio"
BARE_SOCKET = "bare socket"
REPLICA = "replica"
ENVOY = "headrace up"


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A server that answers.

    `http` and `grpc` are ports on loopback, 0 for none. `pid` is the process that answers; `envoy`
    the gateway's, 0 for none.
    """

    name: str
    pid: int
    http: int = 0
    grpc: int = 0
    envoy: int = 0

    def url(self, path: str = "") -> str:
        """Where HTTP requests go."""
        return f"http://127.0.0.1:{self.http}{path}"


@contextmanager
def fastapi(model: Path, *, cores: frozenset[int], home: Path) -> Iterator[System]:
    """FastAPI on uvicorn, as tuned as it goes."""
    (port,) = processes.free_ports(1)
    argv = [sys.executable, "-m", "bench.servers.fastapi_tuned", str(model), str(port)]
    with processes.running(
        argv,
        part=FASTAPI,
        cores=cores,
        log=home / "fastapi.log",
        is_ready=lambda: processes.answers(port, "/ready"),
    ) as process:
        yield System(name=FASTAPI, pid=process.pid, http=port)


@contextmanager
def grpc_aio(model: Path, *, cores: frozenset[int], home: Path) -> Iterator[System]:
    """A `grpc.aio` server with the model in its event loop."""
    (port,) = processes.free_ports(1)
    argv = [sys.executable, "-m", "bench.servers.grpc_aio", str(model), str(port)]
    with processes.running(
        argv,
        part=GRPC_AIO,
        cores=cores,
        log=home / "grpc_aio.log",
        is_ready=lambda: processes.listens(port),
    ) as process:
        yield System(name=GRPC_AIO, pid=process.pid, grpc=port)


@contextmanager
def bare_socket(model: Path, *, name: str, cores: frozenset[int], home: Path) -> Iterator[System]:
    """A socket, ONNX Runtime and nothing else; one connection at a time."""
    (port,) = processes.free_ports(1)
    argv = [sys.executable, "-m", "bench.servers.bare_socket", str(model), str(port)]
    with processes.running(
        argv,
        part=BARE_SOCKET,
        cores=cores,
        log=home / f"bare-{name}.log",
        is_ready=lambda: processes.listens(port),
    ) as process:
        yield System(name=BARE_SOCKET, pid=process.pid, http=port)


@contextmanager
def replica(
    model: Path,
    *,
    name: str,
    cores: frozenset[int],
    home: Path,
    batching: BatchingSpec | None = None,
    uds: Path | None = None,
    model_name: str = "",
    module: str = "headrace.serving",
) -> Iterator[System]:
    """One replica alone, with its default settings, on TCP (and on a Unix socket if asked).

    Args:
        model_name: Empty for `name`, which is the process's own.
        module: What runs it.
    """
    (port,) = processes.free_ports(1)
    settings = ReplicaSettings(
        model_name=model_name or name,
        model_version="1",
        path=str(model),
        port=port,
        uds=str(uds or ""),
        batching=batching or BatchingSpec(),
    )
    file = home / f"replica-{name}.json"
    file.write_bytes(msgspec.json.encode(settings))
    argv = [sys.executable, "-m", module, "--settings", str(file)]
    with processes.running(
        argv,
        part=REPLICA,
        cores=cores,
        log=home / f"replica-{name}.log",
        is_ready=lambda: processes.answers(port, "/v2/health/ready"),
    ) as process:
        yield System(name=REPLICA, pid=process.pid, http=port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where a whole system listens."""

    http: int
    grpc: int
    metrics: int
    admin: int

    @staticmethod
    def free() -> "Ports":
        """Four that nobody uses now."""
        http, grpc, metrics, admin = processes.free_ports(4)
        return Ports(http=http, grpc=grpc, metrics=metrics, admin=admin)

    def flags(self, home: Path) -> list[str]:
        """For `headrace up`."""
        named = {"http": self.http, "grpc": self.grpc, "metrics": self.metrics, "admin": self.admin}
        flags = [flag for name, port in named.items() for flag in (f"--{name}-port", str(port))]
        return ["--home", str(home), *flags]


def headrace(*arguments: str) -> list[str]:
    """Argument vector of a `headrace` command in this environment."""
    return [str(Path(sys.executable).with_name("headrace")), *arguments]


@contextmanager
def up(
    model: Path, *, name: str, inputs: Mapping[str, Any], cores: frozenset[int], home: Path
) -> Iterator[System]:
    """`headrace up`: gateway, replica and control plane, all on `cores`, ready to answer `name`."""
    spec = {"version": 1, "endpoints": [{"name": name, "model": str(model.resolve())}]}
    with up_spec(spec, probe=json_payload(name, inputs), cores=cores, home=home) as system:
        yield system


@contextmanager
def up_spec(
    spec: Mapping[str, Any],
    *,
    probe: Payload,
    cores: frozenset[int],
    home: Path,
    within_s: float = processes.START_TIMEOUT_S,
) -> Iterator[System]:
    """`headrace up` with any spec, once `probe` gets 200 from its gateway.

    `pid` is that of its first replica, 0 where all endpoints are upstreams.
    """
    ports = Ports.free()
    file = home / "headrace.yaml"
    file.write_text(json.dumps(spec))  # JSON is YAML
    with processes.running(
        headrace("up", str(file), *ports.flags(home / "state")),
        part=ENVOY,
        cores=cores,
        log=home / "up.log",
        is_ready=lambda: answers(ports.http, probe),
        within_s=within_s,
    ):
        status = fetch_status(ports.admin, home / "state")
        yield System(
            name=ENVOY,
            pid=next(iter(replica_pids(status)), 0),
            http=ports.http,
            grpc=ports.grpc,
            envoy=gateway_pid(status),
        )


def owner_headers(home: Path) -> dict[str, str]:
    """What shows the management API of a home that its owner asks."""
    return {"authorization": f"Bearer {(home / 'admin-token').read_text().strip()}"}


def fetch_status(admin_port: int, home: Path) -> Mapping[str, Any]:
    """What the control plane of `home` says about everything it runs."""
    connection = http.client.HTTPConnection("127.0.0.1", admin_port, timeout=10)
    try:
        connection.request("GET", "/api/v1/status", headers=owner_headers(home))
        document: Mapping[str, Any] = json.loads(connection.getresponse().read())
        return document
    finally:
        connection.close()


def replica_pids(status: Mapping[str, Any]) -> list[int]:
    """Process ids of every replica."""
    return [
        replica["pid"]
        for endpoint in status["endpoints"]
        for revision in endpoint["revisions"]
        for replica in revision["replicas"]
    ]


def gateway_pid(status: Mapping[str, Any]) -> int:
    """Process id of Envoy."""
    return int(status["gateway"].get("pid") or 0)


def answers(port: int, payload: Payload) -> bool:
    """Whether a request on loopback gets 200 now."""
    return processes.answers(
        port, payload.path, method="POST", body=payload.body, headers=payload.headers
    )
