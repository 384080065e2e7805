"""A whole system over eight hosts: gateways, nodes, a control plane, a cluster, callers."""

import contextlib
import ctypes
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from headrace.control.auth.home_token import read_home_token
from headrace.testing import models
from tests.certificates import Authority
from tests.e2e.control.system import System, replicas
from tests.e2e.hosts.cluster import NAMESPACE, SECRET, ClusterSettings
from tests.e2e.hosts.network import Host, Network, network

T = TypeVar("T")
Json = dict[str, Any]
GATEWAYS: Final = ("gw1", "gw2")
NODES: Final = ("node1", "node2", "node3")
ENDPOINT: Final = "fraud"
_ADMIN_PORT: Final = 8080
_AGENTS_PORT: Final = 8443
_TOKEN: Final = "what-the-control-plane-shows-replicas"  # noqa: S105  # of this test alone
_CLONE_NEWNET: Final = 0x40000000
_AGAIN: Final = """
import subprocess, sys, time
while True:
    subprocess.run([sys.executable, *sys.argv[1:]])
    time.sleep(1)
"""
_ROOT: Final = Path(__file__).resolve().parents[3]


class NotLeadingError(Exception):
    """The control plane answers and does not lead, yet or any more."""


def inside(host: Host, do: Callable[[], T]) -> T:
    """What `do` returns on `host`: its sockets are of that host's network."""
    outcome: list[T | BaseException] = []

    def run() -> None:
        try:
            with Path(f"/run/netns/{host.namespace}").open() as file:
                libc = ctypes.CDLL(None, use_errno=True)
                failed = libc.setns(file.fileno(), _CLONE_NEWNET)
            assert not failed, os.strerror(ctypes.get_errno())
            outcome.append(do())
        except BaseException as error:  # noqa: BLE001  # raised below, in the thread that asked
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    (found,) = outcome
    if isinstance(found, BaseException):
        raise found
    return found


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a caller's; `at` is on this machine's monotonic clock."""

    gateway: str
    at: float
    took_s: float
    status: str

    @property
    def is_good(self) -> bool:
        return self.status == "200"


@dataclass(slots=True)
class Load:
    """Requests at a steady rate to both gateways, while it runs."""

    path: Path
    process: Any

    def end(self) -> list[Request]:
        """All requests, in the order in which they began."""
        self.process.terminate()  # `ip netns exec` becomes what it runs
        self.process.wait(60)
        lines = self.path.read_text().splitlines()
        found = [msgspec.json.decode(line) for line in lines]
        return sorted((Request(**one) for one in found), key=lambda one: one.at)


@dataclass(slots=True)
class Cloud:
    """The hosts and what runs on them."""

    net: Network
    folder: Path
    authority: Authority
    _loads: int = 0

    def host(self, name: str) -> Host:
        return self.net.hosts[name]

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def cluster(self) -> Path:
        return self.folder / "cluster"

    def start_cluster(self) -> None:
        """The API server and the kubelets."""
        self.cluster.mkdir()
        (self.folder / "store").mkdir()
        (self.folder / "token").write_text(_TOKEN)
        self._start_part("api")
        deadline = time.monotonic() + 180.0
        while not (self.cluster / "ready").exists():
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.2)
        for name in NODES:
            self.start_kubelet(name)

    def start_kubelet(self, node: str) -> None:
        """What runs pods on a node."""
        self._start_part(node, node)

    def _start_part(self, name: str, node: str = "") -> None:
        host = self.host(name)
        settings = ClusterSettings(
            folder=str(self.cluster),
            server=self.host("api").address,
            token=_TOKEN,
            namespace=host.namespace,
            address=host.address,
            pods=host.pods,
            node=node,
            store=str(self.folder / "store"),
        )
        path = self.folder / f"{name}.json"
        path.write_bytes(msgspec.json.encode(settings))
        script = str(Path(__file__).with_name("cluster.py"))
        self._python(name, [script, str(path)], env={"PYTHONPATH": str(_ROOT)})

    def start_control(self) -> None:
        """The control plane, on the home that it had before, if it had one."""
        address = self.host("control").address
        shown = self.authority.directory / "control.pem"
        if not shown.exists():
            self.authority.server("control", address)
        self._headrace(
            "control",
            [
                *("control", str(self.folder / "headrace.yaml"), "--driver", "kubernetes"),
                *("--namespace", NAMESPACE, "--gateway", "remote"),
                *("--image-registry", "registry.test"),
                *("--artifacts", self.artifacts, "--agents-host", address),
                *("--agents-port", str(_AGENTS_PORT), "--agents-tls-cert", str(shown)),
                *("--agents-tls-key", str(self.authority.directory / "control-key.pem")),
                *("--agents-tls-client-ca", str(self.authority.ca)),
                *("--internal-secret", SECRET, "--admin-port", str(_ADMIN_PORT)),
            ],
            env={
                "HEADRACE_HOME": str(self.home),
                "KUBECONFIG": str(self.cluster / "kubeconfig"),
                "HEADRACE_INTERNAL_TOKEN_FILE": str(self.folder / "token"),
            },
        )

    @property
    def artifacts(self) -> str:
        return f"file://{self.folder / 'store'}"

    def start_gateway(self, name: str) -> None:
        """A gateway with its agent, on the directory that it had before."""
        host, control = self.host(name), self.host("control").address
        certificate = self.authority.directory / f"{name}.pem"
        if not certificate.exists():
            self.authority.client(name)
        self._headrace(
            name,
            [
                *("gateway", "--control", f"https://{control}:{_AGENTS_PORT}", "--name", name),
                *("--tls-cert", str(certificate)),
                *("--tls-key", str(self.authority.directory / f"{name}-key.pem")),
                *("--ca-file", str(self.authority.ca), "--dir", str(self.folder / name)),
                *("--host", host.address, "--admin-host", host.address),
            ],
        )

    def status(self) -> Json:
        """What the control plane says of everything."""
        address = f"http://127.0.0.1:{_ADMIN_PORT}/api/v1/status"
        token = read_home_token(self.home)
        code, answer = inside(
            self.host("control"), lambda: System.call("GET", address, token=token)
        )
        if code == 503:
            raise NotLeadingError(answer)
        assert code == 200, answer
        found: Json = answer
        return found

    def wait_for(self, condition: Callable[[Json], bool], timeout_s: float = 60.0) -> Json:
        """The status once `condition` holds for it."""
        deadline = time.monotonic() + timeout_s
        while True:
            found: Json = {}
            with contextlib.suppress(OSError, NotLeadingError):
                found = self.status()
                if condition(found):
                    return found
            assert time.monotonic() < deadline, f"{found}\n{self.logs()}"
            time.sleep(0.2)

    def is_ready(self, gateway: str) -> bool:
        """Whether a gateway itself says that it serves, and follows."""
        host = self.host(gateway)

        def ask() -> tuple[int, Any]:
            return System.call("GET", f"http://{host.address}:8002/readyz")

        try:
            code, answer = inside(host, ask)
        except OSError:
            return False
        return code == 200 and answer["control"] == "answers"

    def replicas(self) -> list[Json]:
        """The replicas of the endpoint that are ready."""
        found = replicas(self.status(), ENDPOINT)
        return [replica for replica in found if replica["state"] == "ready"]

    def addresses_on(self, node: str) -> list[str]:
        """The addresses of a node's pods."""
        return self.host(node).pod_addresses()

    def load(self, rate: float = 40.0) -> Load:
        """Callers begin to ask both gateways."""
        self._loads += 1
        path = self.folder / f"load-{self._loads}.jsonl"
        urls = [
            f"{name}=http://{self.host(name).address}:8000/v2/models/{ENDPOINT}/infer"
            for name in GATEWAYS
        ]
        script = str(Path(__file__).with_name("asking.py"))
        process = self._python("callers", [script, str(path), str(rate), *urls])
        return Load(path, process)

    def logs(self) -> str:
        """The end of every log."""
        paths = sorted(path for path in self.folder.rglob("*log") if path.is_file())
        return "\n".join(
            f"== {path.name} {path.parent.name}\n{path.read_text()[-1500:]}" for path in paths
        )

    def _python(self, host: str, arguments: Sequence[str], *, env: Json | None = None) -> Any:
        log = self.folder / f"{host}.log"
        return self.host(host).start([sys.executable, *arguments], log=log, env=env)

    def _headrace(self, host: str, arguments: Sequence[str], *, env: Json | None = None) -> Any:
        """One command, started again whenever it ends, as a container is."""
        return self._python(host, ["-c", _AGAIN, "-m", "headrace.cli", *arguments], env=env)


@contextlib.contextmanager
def cloud(folder: Path, *, copies: int = 3) -> Iterator[Cloud]:
    """A system that serves `ENDPOINT` on three nodes by two gateways."""
    model = folder / "m.onnx"
    model.write_bytes(models.mlp())
    spec = {
        "version": 1,
        "endpoints": [
            {
                "name": ENDPOINT,
                "model": str(model),
                "replicas": copies,
                "timeout_s": 5,
                "access": "public",
            }
        ],
    }
    (folder / "headrace.yaml").write_text(json.dumps(spec))
    with network("api", "control", *GATEWAYS, *NODES, "callers") as net:
        made = Cloud(net, folder, Authority(folder / "certs"))
        made.start_cluster()
        made.start_control()
        for name in GATEWAYS:
            made.start_gateway(name)
        yield made
