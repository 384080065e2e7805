"""Kubernetes control plane of real programs, in a network namespace of its own.

etcd, API server, controller manager and scheduler can be killed and restarted one by one, and the
database can be put back to an earlier copy. The host is on the network of the pods, so that tests
reach the API server and each pod by its address. Nothing routes the addresses of Services.
"""

import asyncio
import base64
import contextlib
import fcntl
import ipaddress
import json
import os
import secrets
import shutil
import ssl
from asyncio import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Self

import httpx2
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

Object = dict[str, Any]
PARTS: Final = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
READY_WITHIN_S: Final = 180.0
"""A start takes 10 s alone, and several times that on a busy machine."""
_NETWORKS: Final = tuple(ipaddress.IPv4Network("198.18.0.0/15").subnets(new_prefix=19))
"""Of a range that is set aside for tests of networks: 16 clusters, each with 8,000 addresses."""
_BRIDGE: Final = "02:00:c6:12:00:01"
"""Hardware address of the bridge, which is the API server's."""
_LOCKS: Final = Path("/run/lock")
_AUDIT_POLICY: Final = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


class LabError(Exception):
    """A program that the cluster needs failed."""


async def run_program(*words: str | Path) -> str:
    """Return what a program prints; LabError if it fails."""
    process = await asyncio.create_subprocess_exec(
        *map(str, words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output, errors = await process.communicate()
    if process.returncode:
        raise LabError(f"{' '.join(map(str, words))}: {errors.decode().strip()}")
    return output.decode()


def why_not() -> str:
    """Return why no cluster can be started here, apart from its programs; empty if it can."""
    if os.geteuid() != 0:
        return "network namespaces are made by root"
    missing = [name for name in ("ip", "setpriv", "unshare") if shutil.which(name) is None]
    if missing:
        return f"there is no {' and no '.join(missing)}: apt-get install iproute2 util-linux"
    return ""


@dataclass(slots=True)
class Network:
    """Bridge in a network namespace, on which pods get namespaces and addresses of their own."""

    name: str
    """The namespace; those of its pods begin with it."""
    server: str
    """Address of the API server."""
    host: str
    """Address to which pods send what is for others."""
    addresses: ipaddress.IPv4Network
    """Of pods, from the 16th on."""
    bridge: str = "eth0"
    prefix: int = 16
    lock: IO[str] | None = None
    _given: int = 16
    _free: list[str] = field(default_factory=list)

    @classmethod
    async def claim(cls) -> Self:
        """Make the first network that no other process has, with this machine on it.

        What a process that was killed left is removed by the next one that claims its network.
        """
        for number, addresses in enumerate(_NETWORKS):
            lock = (_LOCKS / f"headrace-kube-{number}").open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            name, server, host = f"hr-kube{number}", str(addresses[1]), str(addresses[2])
            prefix = addresses.prefixlen
            network = cls(name, server, host, addresses, "bridge", prefix, lock)
            await network.remove()
            await run_program("ip", "netns", "add", name)
            await network.ip("link", "set", "lo", "up")
            # Its own hardware address: else it is the lowest one of its ports, which change with
            # the pods, and for 15 s or more nobody who knew the old one reaches the API server.
            await network.ip("link", "add", "bridge", "address", _BRIDGE, "type", "bridge")
            await network.ip("addr", "add", f"{server}/{prefix}", "dev", "bridge")
            await network.ip("link", "set", "bridge", "up")
            port, veth = f"hrkube{number}", ("type", "veth", "peer", "name", "host", "netns", name)
            with contextlib.suppress(LabError):  # the kernel removes that of a past network later
                await run_program("ip", "link", "del", port)
            await run_program("ip", "link", "add", port, *veth)
            await network.ip("link", "set", "host", "master", "bridge", "up")
            await run_program("ip", "addr", "add", f"{host}/{prefix}", "dev", port)
            await run_program("ip", "link", "set", port, "up")
            return network
        raise LabError(f"{len(_NETWORKS)} clusters run already")

    def take_address(self) -> str:
        """Return an address for a pod; one that was given back only after all others."""
        if self._given < self.addresses.num_addresses - 1:
            self._given += 1
            return str(self.addresses[self._given - 1])
        return self._free.pop(0)

    def give_back(self, address: str) -> None:
        """Let another pod have an address."""
        self._free.append(address)

    async def ip(self, *words: str) -> str:
        """Run `ip` in the namespace."""
        return await run_program("ip", "-n", self.name, *words)

    async def add_pod(self, namespace: str, address: str) -> None:
        """Make a namespace on this network; what has its name is removed."""
        with contextlib.suppress(LabError):
            await self.remove_pod(namespace)
        port = f"p{int(ipaddress.ip_address(address)) - int(self.addresses[0])}"
        await run_program("ip", "netns", "add", namespace)
        veth = ("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        await self.ip(*veth)
        await self.ip("link", "set", port, "master", self.bridge, "up")
        lines = (
            "link set lo up",
            f"addr add {address}/{self.prefix} dev eth0",
            "link set eth0 up",
            f"route add default via {self.host}",
        )
        for line in lines:
            await run_program("ip", "-n", namespace, *line.split())

    async def remove(self) -> None:
        """Remove the namespace and those of its pods."""
        await self.remove_pods()
        if self.name in await self._namespaces():
            await self.remove_pod(self.name)

    async def remove_pods(self) -> None:
        """Remove the namespaces of all pods."""
        for name in await self._namespaces():
            if name.startswith(f"{self.name}-"):
                await self.remove_pod(name)

    async def _namespaces(self) -> list[str]:
        return [line.split()[0] for line in (await run_program("ip", "netns")).splitlines()]

    async def close(self) -> None:
        """Remove the network, and let another process claim it."""
        await self.remove()
        if self.lock is not None:
            self.lock.close()

    async def remove_pod(self, namespace: str) -> None:
        """End every process in a namespace, and remove it."""
        for pid in (await run_program("ip", "netns", "pids", namespace)).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), 9)
        await run_program("ip", "netns", "del", namespace)


@dataclass(slots=True)
class Cluster:
    """Control plane whose files are in `folder`, as an async context.

    `flags` of a part are added to its own and apply from its next start.
    """

    programs: Path
    folder: Path
    network: Network
    flags: dict[str, list[str]] = field(default_factory=dict)
    token: str = field(default_factory=secrets.token_urlsafe)
    """Of the administrator."""
    _processes: dict[str, subprocess.Process] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The API server."""
        return f"https://{self.network.server}:6443"

    @property
    def kubeconfig(self) -> Path:
        """Kubeconfig of the administrator."""
        return self.folder / "kubeconfig"

    def http(
        self, token: str = "", user_agent: str = "test", timeout_s: float = 30.0
    ) -> httpx2.AsyncClient:
        """Return a client of the API server, of the administrator without a token."""
        return httpx2.AsyncClient(**self._client(token, user_agent, timeout_s))

    def blocking_http(self, token: str = "", user_agent: str = "test") -> httpx2.Client:
        """Return a client of the API server that waits for answers."""
        return httpx2.Client(**self._client(token, user_agent, 30.0))

    def _client(self, token: str, user_agent: str, timeout_s: float) -> dict[str, Any]:
        authority = ssl.create_default_context(cafile=self._file("certs/apiserver.crt"))
        headers = {"authorization": f"Bearer {token or self.token}", "user-agent": user_agent}
        return {
            "base_url": self.url, "headers": headers, "verify": authority, "trust_env": False,
            # A handshake that is cancelled leaves its socket open.
            "timeout": httpx2.Timeout(timeout_s, connect=60.0),
            "limits": httpx2.Limits(max_connections=200),
        }  # fmt: skip

    async def __aenter__(self) -> Self:
        try:
            self._write_files()
            for part in PARTS[:2]:
                await self.start(part)
            self.write_kubeconfig(self.kubeconfig, self.token)
            for part in PARTS[2:]:
                await self.start(part)
            await self._wait_ready("/api/v1/namespaces/default/serviceaccounts/default")
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for part in reversed(PARTS):
            await self.kill(part)
        await self.network.close()

    async def start(self, part: str) -> None:
        """Start a part; the API server is ready then."""
        with (self.folder / f"{part}.log").open("ab") as log:
            self._processes[part] = await subprocess.create_subprocess_exec(
                # Elsewhere it has machines of its own, and pods do not take its time.
                *("ip", "netns", "exec", self.network.name, "nice", "-n", "-10"),
                *("setpriv", "--pdeathsig", "KILL"),
                *(str(self.programs / part), *self._arguments(part), *self.flags.get(part, ())),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if part == "kube-apiserver":
            await self._wait_ready("/readyz")

    async def kill(self, part: str) -> None:
        """Kill one of `PARTS` as a lost machine would, if it runs."""
        assert part in PARTS, part
        if (process := self._processes.pop(part, None)) is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def restart(self, part: str) -> None:
        """Kill a part, and start it with the flags that it has now."""
        await self.kill(part)
        await self.start(part)

    async def backup(self) -> Path:
        """Return a copy of the database; etcd is away for a moment."""
        copy = self.folder / f"etcd-{secrets.token_hex(4)}"
        process = self._processes["etcd"]
        process.terminate()
        await process.wait()
        shutil.copytree(self.folder / "etcd", copy)
        await self.start("etcd")
        await self._wait_ready("/readyz")
        return copy

    async def restore(self, copy: Path, *, bump_revisions: int = 0) -> None:
        """Put the database back to a copy; all parts are restarted, as controllers keep copies.

        With `bump_revisions` as etcd's documentation asks for: by `etcdutl snapshot restore`, with
        later revisions than before, so that watches expire. Else revisions go back.
        """
        for part in reversed(PARTS):
            await self.kill(part)
        shutil.rmtree(self.folder / "etcd")
        if bump_revisions:
            await run_program(
                *(self.programs / "etcdutl", "snapshot", "restore", copy / "member/snap/db"),
                *("--skip-hash-check", "--data-dir", self.folder / "etcd", "--mark-compacted"),
                *("--bump-revision", str(bump_revisions)),
            )
        else:
            shutil.copytree(copy, self.folder / "etcd")
        for part in PARTS:
            await self.start(part)

    async def compact(self) -> None:
        """Remove all but the latest version of each object from the database."""
        async with httpx2.AsyncClient(trust_env=False) as http:
            url = f"http://{self.network.server}:2379/v3/kv"
            key = {"key": base64.b64encode(b"/").decode()}
            revision = (await http.post(f"{url}/range", json=key)).json()["header"]["revision"]
            body = {"revision": revision, "physical": True}
            (await http.post(f"{url}/compaction", json=body)).raise_for_status()

    def audit_log(self) -> Iterator[Object]:
        """Return all requests so far as the audit log has them."""
        for line in self._file("audit.log").read_text().splitlines():
            yield json.loads(line)

    def write_kubeconfig(self, path: Path, token: str, namespace: str = "default") -> None:
        """Write a kubeconfig of a token."""
        authority = base64.b64encode(self._file("certs/apiserver.crt").read_bytes()).decode()
        server = {"server": self.url, "certificate-authority-data": authority}
        context = {"cluster": "test", "user": "test", "namespace": namespace}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": server}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": context}],
            "current-context": "test",
        }
        path.write_text(json.dumps(config))

    def _file(self, name: str) -> Path:
        return self.folder / name

    def _write_files(self) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        text = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
        self._file("accounts.key").write_bytes(text)
        self._file("tokens.csv").write_text(f'{self.token},admin,1,"system:masters"\n')
        self._file("audit.yaml").write_text(json.dumps(_AUDIT_POLICY))

    def _arguments(self, part: str) -> list[str]:
        # Clients of more than 20 requests a second would wait for themselves.
        client = [f"--kubeconfig={self.kubeconfig}", "--leader-elect=false"]
        client += ["--kube-api-qps=500", "--kube-api-burst=1000", "--bind-address=127.0.0.1"]
        match part:
            case "etcd":
                url = f"http://{self.network.server}:2379"
                return [
                    f"--data-dir={self._file('etcd')}", "--unsafe-no-fsync", "--log-level=warn",
                    f"--listen-client-urls={url}", f"--advertise-client-urls={url}",
                    "--quota-backend-bytes=4294967296",
                ]  # fmt: skip
            case "kube-apiserver":
                key = self._file("accounts.key")
                return [
                    f"--etcd-servers=http://{self.network.server}:2379",
                    "--bind-address=0.0.0.0", f"--advertise-address={self.network.server}",
                    "--secure-port=6443", f"--cert-dir={self._file('certs')}",
                    # Aggregated APIs are reached by their EndpointSlices: Services have no routes.
                    "--endpoint-reconciler-type=none", "--enable-aggregator-routing",
                    "--service-cluster-ip-range=10.0.0.0/20", "--authorization-mode=RBAC",
                    f"--token-auth-file={self._file('tokens.csv')}",
                    f"--service-account-key-file={key}",
                    f"--service-account-signing-key-file={key}",
                    "--service-account-issuer=https://kubernetes.default.svc",
                    f"--audit-log-path={self._file('audit.log')}", "--audit-log-maxsize=1000",
                    f"--audit-policy-file={self._file('audit.yaml')}",
                    # 300 s in a cluster of others
                    "--default-not-ready-toleration-seconds=5",
                    "--default-unreachable-toleration-seconds=5",
                ]  # fmt: skip
            case "kube-controller-manager":
                return [
                    *client, "--horizontal-pod-autoscaler-sync-period=2s",
                    f"--service-account-private-key-file={self._file('accounts.key')}",
                    f"--root-ca-file={self._file('certs/apiserver.crt')}",
                    "--controllers=*,-node-ipam-controller,-cloud-node-lifecycle-controller",
                    # 50 s in a cluster of others
                    "--node-monitor-grace-period=15s", "--node-monitor-period=1s",
                ]  # fmt: skip
            case _:
                return client

    async def _wait_ready(self, path: str) -> None:
        """Wait until a path is answered; LabError if a part ends before."""
        async with asyncio.timeout(READY_WITHIN_S):
            while True:
                for part, process in list(self._processes.items()):
                    if process.returncode is not None:
                        text = (self.folder / f"{part}.log").read_text(errors="replace")
                        raise LabError(f"{part} ended: {text[-1500:]}")
                if await asyncio.to_thread(self._answers, path):
                    return
                await asyncio.sleep(0.3)

    def _answers(self, path: str) -> bool:
        with contextlib.suppress(OSError, httpx2.HTTPError), self.blocking_http() as http:
            return http.get(path, timeout=2.0).is_success
        return False
