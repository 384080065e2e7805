"""Hosts on a network of their own: Linux namespaces on one bridge, that can be lost and cut off."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_SERIAL: Final = itertools.count()
_PREFIX: Final = "10.213"
"""Of all addresses here; nothing outside the namespaces sees them."""
IP: Final = shutil.which("ip") or "/usr/sbin/ip"
_NOWHERE: Final = "02:00:00:00:00:ff"
"""A hardware address that nobody has: what is sent there is lost without a word."""


def why_not() -> str:
    """Why there can be no such network here; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces are made by root"
    if not Path(IP).exists():
        return "there is no `ip`: apt-get install iproute2"
    probe = f"hr{os.getpid()}probe"
    if subprocess.run([IP, "netns", "add", probe], capture_output=True, check=False).returncode:
        return "the kernel gives no network namespaces"
    _ip("netns", "del", probe)
    return ""


@dataclass(slots=True)
class Host:
    """One namespace with one address, on a bridge on which pods can have namespaces of their own.

    Their names begin with that of the host.
    """

    name: str
    namespace: str
    address: str
    pods: str
    """Addresses of its pods."""
    switch: str
    port: str
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def start(
        self, arguments: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None
    ) -> "subprocess.Popen[bytes]":
        """Start a process on this host; it is ended with it."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.namespace}", *arguments],  # noqa: S607  # of Linux
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=None if env is None else {**os.environ, **env},
            )
        self.processes.append(process)
        return process

    def namespaces(self) -> list[str]:
        """Its own, and those of its pods."""
        names = [line.split()[0] for line in _ip("netns").splitlines()]
        pods = [name for name in names if name.startswith(f"{self.namespace}-")]
        return [self.namespace, *pods]

    def pod_addresses(self) -> list[str]:
        """All addresses of its pods."""
        found = []
        for name in self.namespaces()[1:]:
            said = json.loads(_ip("-n", name, "-j", "-4", "addr", "show", "dev", "eth0"))
            found += [one["local"] for one in said[0]["addr_info"]]
        return found

    def unplug(self) -> None:
        """Be off the network: what is sent from or to here is lost, and nobody is told."""
        _ip("-n", self.switch, "link", "set", self.port, "down")

    def plug(self) -> None:
        """Be on the network again."""
        _ip("-n", self.switch, "link", "set", self.port, "up")

    def lose_what_is_sent_to(self, *addresses: str) -> None:
        """Send what is for these addresses nowhere; they can still send here."""
        where = ("lladdr", _NOWHERE, "dev", "eth0", "nud", "permanent")
        for name, address in itertools.product(self.namespaces(), addresses):
            _ip("-n", name, "neigh", "replace", address, *where)

    def find_again(self, *addresses: str) -> None:
        """Send what is for these addresses to them again."""
        for name, address in itertools.product(self.namespaces(), addresses):
            _ip("-n", name, "neigh", "del", address, "dev", "eth0")

    def pids(self) -> list[int]:
        """Every process in its namespaces."""
        said = [_ip("netns", "pids", name) for name in self.namespaces()]
        return [int(word) for word in " ".join(said).split()]

    def kill(self) -> None:
        """Lose power: every process here ends at once."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        for process in self.processes:
            process.wait()
        self.processes.clear()


@dataclass(slots=True)
class Network:
    """The hosts by name, on one bridge in a namespace of its own."""

    switch: str
    hosts: dict[str, Host] = field(default_factory=dict)

    def add(self, name: str) -> Host:
        """One more host; its address follows from how many there are."""
        namespace = f"{self.switch}-{name}"
        number = len(self.hosts) + 1
        port = f"p{number}"
        _ip("netns", "add", namespace)
        pods = f"{_PREFIX}.{number}.0/24"
        host = Host(name, namespace, f"{_PREFIX}.0.{number}", pods, self.switch, port)
        self.hosts[name] = host
        peer = ("peer", "name", "uplink", "netns", namespace)
        _ip("-n", self.switch, "link", "add", port, "type", "veth", *peer)
        _ip("-n", self.switch, "link", "set", port, "master", "bridge", "up")
        _ip("-n", namespace, "link", "set", "lo", "up")
        # Its own hardware address: else it is the lowest one of its ports, which change.
        hardware = f"02:00:00:00:00:{number:02x}"
        _ip("-n", namespace, "link", "add", "eth0", "address", hardware, "type", "bridge")
        _ip("-n", namespace, "link", "set", "uplink", "master", "eth0", "up")
        _ip("-n", namespace, "addr", "add", f"{host.address}/16", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")
        return host

    def close(self) -> None:
        """End every process and take everything away."""
        for host in self.hosts.values():
            host.kill()
            for name in host.namespaces():
                _ip("netns", "del", name)
        _ip("netns", "del", self.switch)


@contextlib.contextmanager
def network(*names: str) -> Iterator[Network]:
    """A network with these hosts, for as long as the block runs."""
    switch = f"hr{os.getpid()}n{next(_SERIAL)}"
    _ip("netns", "add", switch)
    made = Network(switch)
    try:
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for name in names:
            made.add(name)
        yield made
    finally:
        made.close()


def _ip(*arguments: str) -> str:
    done = subprocess.run([IP, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
