"""Sandbox policy of processes that run model code, and the environment they inherit."""

import contextlib
import ctypes
import json
import logging
import os
import resource
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cache
from pathlib import Path
from subprocess import SubprocessError
from typing import Any, Final, NamedTuple

import msgspec

from headrace.core import FailedPreconditionError, confine
from headrace.core.error_kind import UNDECODABLE
from headrace.core.processes import HANDOVER_FD, output_of
from headrace.core.redact import VARIABLE
from headrace.gateway import GATEWAY_USER, EnvoySettings, gateway_user
from headrace.gateway.binary import find_envoy
from headrace.gateway.settings import parse_address
from headrace.gateway.upstreams import authorities


def named_in(*texts: str) -> set[str]:
    """The variables that texts name."""
    return {name for text in texts for name in VARIABLE.findall(text)}


@dataclass(slots=True)
class Environment:
    """What the processes of a control plane inherit."""

    variables: Mapping[str, str] = field(default_factory=lambda: os.environ)
    """All there is. What a spec names is withheld from that spec on, for good: what was a secret
    once stays one.
    """
    _document: Mapping[str, Any] = field(default_factory=dict)
    _named: set[str] = field(default_factory=set)

    def withhold(self, document: Mapping[str, Any]) -> None:
        """Start processes under this spec from now on."""
        if document is not self._document:
            self._document = document
            self._named |= named_in(_text(document), *map(options_of, _brokers(document)))

    def of(self, *told: str, parts: Iterable[str] = ()) -> dict[str, str]:
        """The environment of a new process.

        Args:
            told: Its settings, as text: what these name it has.
            parts: Of the spec, by name, such as `endpoints`: what all of them name it has as well.
        """
        document = self._document
        self._named |= named_in(*map(options_of, _brokers(document)))  # files change meanwhile
        own = named_in(*told, *(_text(document.get(part)) for part in parts))
        withheld = self._named - own
        return {name: value for name, value in self.variables.items() if name not in withheld}


def options_of(broker: str) -> str:
    """What a file holds that a stream's broker names: it names secrets as well."""
    if not broker.startswith("kafka:"):
        return ""
    from headrace.streaming.brokers.kafka.url import (  # noqa: PLC0415  # few have one
        options_text,
    )

    return options_text(broker)


def _brokers(document: Mapping[str, Any]) -> list[str]:
    sources = [stream.get("source") or {} for stream in document.get("streams") or ()]
    return [broker for source in sources if isinstance(broker := source.get("broker"), str)]


def _text(document: object) -> str:
    """As JSON; nothing in it that is escaped can be a part of a name."""
    return msgspec.json.encode(document, enc_hook=str).decode()


_LOG: Final = logging.getLogger("headrace.control")
_PROGRAM: Final = Path(confine.__file__)
_PR_SET_NO_NEW_PRIVS: Final = 38
_PROBE_TIMEOUT_S: Final = 10.0
_CONFIG: Final = "config.pbtxt"
FIRST_UID: Final = 60_578
"""Replicas of a root process run as one of the users that systemd leaves unused: no other process
is one of them, and there need not be a name for it."""
UIDS: Final = 606
OPEN_FILES: Final = 65_536
OOM_SCORE_ADJ: Final = 500
"""The kernel ends a sandboxed process before the control plane when memory runs out."""
PROCESSES: Final = 512
"""Processes and threads of a replica, besides those for each core."""
PROCESSES_A_CORE: Final = 16
_LEAST_DATA_BYTES: Final = 4 << 30
_DATA_BYTES_A_CORE: Final = 64 << 20
"""For thread stacks and buffers of the frameworks, which are there before they are touched."""
_TIMES_MODEL: Final = 8
_TIMES_BODY: Final = 8
_RESOLVER: Final = "/run/systemd/resolve"
"""Where /etc/resolv.conf may lead to."""
_FIRST_OPEN_PORT: Final = 1024
_REMEDY: Final = (
    "allow unprivileged user namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns=0; in "
    "a container, a seccomp profile that allows unshare and mount), or have an admin set "
    "`isolation: best-effort` for the endpoint"
)


class SandboxPurpose(IntEnum):
    """What runs besides replicas: the serial of its user, which no replica has."""

    GATEWAY = GATEWAY_USER - FIRST_UID
    JOB = 599
    SECOND_JOB = 600
    """Of another run at the same time."""
    CONVERSION = 601
    PROFILE = 602
    SEARCH = 603
    STREAM = 604
    """All workers of streams: they share the embedded log."""
    INSPECTION = 605


def user_of(serial: int) -> int:
    """The user of a replica, or of an occasion."""
    return FIRST_UID + (
        serial if isinstance(serial, SandboxPurpose) else serial % SandboxPurpose.GATEWAY
    )


class KernelFeatures(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel allows; a text is the reason why not, and empty if it does."""

    namespaces: str = "cannot be determined"
    """Mount, network, IPC and PID namespaces of its own for a process."""
    user_ns: bool = False
    """Whether these need a user namespace."""
    user: str = "not root"
    """Becoming another user."""
    landlock: bool = False
    """Landlock and seccomp, which do instead where nothing needs the network."""


class KernelProbe:
    """Asks the kernel in a process of its own, started at once; it takes about 20 ms."""

    def __init__(self) -> None:
        self._abilities = KernelFeatures()
        self._thread = threading.Thread(target=self._ask, name="probe", daemon=True)
        self._thread.start()

    def result(self) -> KernelFeatures:
        """Return the answer; waits for it the first time."""
        self._thread.join(_PROBE_TIMEOUT_S)
        return self._abilities

    def _ask(self) -> None:
        command = [sys.executable, "-I", "-S", str(_PROGRAM), "--probe"]
        try:
            output = output_of(command, timeout_s=_PROBE_TIMEOUT_S)
            self._abilities = msgspec.json.decode(output, type=KernelFeatures)
        except (OSError, SubprocessError, *UNDECODABLE) as error:
            why = f"cannot be determined: {error}"
            self._abilities = KernelFeatures(namespaces=why, user=why)
        if self._abilities.namespaces:
            why_not = {"reason": self._abilities.namespaces, "landlock": self._abilities.landlock}
            _LOG.warning("the kernel has no namespaces to isolate processes", extra=why_not)


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """How a process is isolated, as it reports itself."""

    user: int
    """Its number."""
    files: bool
    """It sees its own model and run directory of this home only."""
    network: str
    """`namespace` or `seccomp` for none, `allowed` by its endpoint, or `open` because it cannot be
    closed.
    """
    memory_bytes: int | None = None
    """The most that it may allocate."""
    problems: tuple[str, ...] = ()
    """What is not isolated, and was accepted."""


class Libraries(NamedTuple):
    """Directories that processes import from: without the first ones none can begin."""

    needed: tuple[str, ...]
    others: tuple[str, ...]


def libraries() -> Libraries:
    """The interpreter and this package, and what else this process imports from."""
    here = str(Path.cwd())
    ours = str(Path(__file__).resolve().parents[3])
    needed = [sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parent), ours]
    # `python -m` puts the working directory first, which holds a home as often as not.
    others = [path for path in sys.path if path and path != here and Path(path).exists()]
    return Libraries(
        needed=tuple(dict.fromkeys(needed)),
        others=tuple(path for path in dict.fromkeys(others) if path not in needed),
    )


def files_of(model: Path) -> list[Path]:
    """What a process reads that loads a model: its directory, and what Triton's layout says of it.

    There a numbered directory holds the file, and the one above what it takes and gives.
    """
    directory = model if model.is_dir() else model.parent
    config = directory.parent / _CONFIG
    if not directory.name.isdecimal() or not config.is_file():
        return [directory]
    # Whoever may not read it can still serve what needs no such file, as the user it should be.
    readable = config.stat().st_mode & stat.S_IROTH
    return [directory, config] if readable else [directory]


def data_limit(size_bytes: int, *, max_body_bytes: int = 0) -> int:
    """The most that a process may allocate which serves models of that size together.

    The kernel refuses more (RLIMIT_DATA): a request whose answer would be larger fails, and no
    other. Bodies count as decoded, in a batch.
    """
    least = _LEAST_DATA_BYTES + _DATA_BYTES_A_CORE * (os.cpu_count() or 1)
    return least + _TIMES_MODEL * size_bytes + _TIMES_BODY * max_body_bytes


@dataclass(slots=True, kw_only=True)
class Sandbox:
    """Makes command lines whose processes are restricted."""

    hide: tuple[Path, ...]
    """Directories of which a process sees only what it gets."""
    reports: Path
    """Where each process writes how it is isolated. `kernel_features`: what the kernel allows."""
    kernel_features: Callable[[], KernelFeatures]
    libraries: Libraries = field(default_factory=libraries)
    """What every process imports from."""
    environment: Environment = field(default_factory=Environment)
    """The variables that they inherit."""
    _reports: dict[str, tuple[int, Isolation]] = field(default_factory=dict)

    @classmethod
    def of_home(cls, home: Path) -> "Sandbox":
        """For a command: `home` is hidden, and the kernel is asked when that is needed."""
        ask = cache(lambda: KernelProbe().result())
        return cls(hide=(home.resolve(),), reports=home, kernel_features=ask)

    def command(
        self,
        arguments: Sequence[str],
        *,
        name: str,
        serial: int,
        own: Sequence[Path],
        keep: Sequence[Path],
        network: bool,
        data_bytes: int | None = None,
        best_effort: bool = False,
        forks: bool = False,
        passed: int | None = None,
    ) -> list[str]:
        """The command line of a process that goes on after this one: see `Process.spawn`.

        Args:
            own: The run directory, and what else belongs to the process.
            keep: What it may read of `hide`; its user must be able to read it.
            network: Whether it may open connections.
            passed: A descriptor that it inherits; all others are closed.

        Raises:
            FailedPreconditionError: It cannot be isolated.
        """
        spec = self.spec(
            own=own,
            keep=keep,
            network=network,
            serial=serial,
            report=self.report_of(name),
            limits={"data_bytes": data_bytes},
            best_effort=best_effort,
            forks=forks,
        )
        spec["handover"] = HANDOVER_FD
        if passed is not None:
            spec["passed"] = passed
        return launched(spec, arguments)

    def spec(
        self,
        *,
        own: Sequence[Path],
        keep: Sequence[Path],
        network: bool,
        serial: int,
        report: Path,
        limits: Mapping[str, int | None] | None = None,
        best_effort: bool = False,
        forks: bool = False,
    ) -> "confine.Spec":
        """The restrictions of a process, as `confine.py` takes them.

        Args:
            limits: Besides those of every process.
            best_effort: Go on with what the kernel allows.
            forks: It has to start processes.

        Raises:
            FailedPreconditionError: It cannot be isolated.
        """
        able = self.kernel_features()
        kind, problems = self._kind(network=network, forks=forks)
        if problems and not best_effort:
            raise FailedPreconditionError(f"cannot isolate the process, which {problems[0]}")
        uid = self.user(serial)
        return {
            "sandbox": kind,
            "user_ns": able.user_ns,
            "uid": uid,
            "network": network,
            "hide": [str(path) for path in self.hide],
            "keep": [str(path) for path in keep],
            "own": [str(path) for path in own],
            "reach": list(self.libraries.needed),
            "also": [*self.libraries.others, _RESOLVER],
            "limits": {
                "open_files": OPEN_FILES,
                # As a user of its own, or counted in its own namespace: else others count too.
                "processes": PROCESSES + PROCESSES_A_CORE * (os.cpu_count() or 1)
                if uid is not None or able.user_ns
                else None,
                "oom_score_adj": OOM_SCORE_ADJ,
                **(limits or {}),
            },
            "report": str(report),
            "problems": [*problems, *(["`isolation` is `best-effort`"] if best_effort else [])],
        }

    def user(self, serial: int) -> int | None:
        """The user that a process becomes; None for the one that this process is."""
        return None if self.kernel_features().user else user_of(serial)

    def _kind(self, *, network: bool, forks: bool) -> tuple[str, list[str]]:
        """The kind of sandbox that this kernel has, and what it leaves open."""
        able = self.kernel_features()
        problems = []
        if able.user not in {"", "not root"}:
            problems.append(f"stays root ({able.user}); run headrace as another user")
        if not able.namespaces:
            return "namespaces", problems
        if able.landlock and not network and not forks:
            return "landlock", problems
        because = f"(no namespaces: {able.namespaces}); {_REMEDY}"
        if forks:
            problems.append(f"could outlive what it starts {because}")
        elif able.landlock:
            problems.append(f"may open the network, and so sockets of this machine {because}")
            return "landlock", problems
        return "open", [*problems, f"sees the files of others and may reach the network {because}"]

    def isolation(self, name: str, pid: int) -> Isolation | None:
        """How the process `pid` called `name` is isolated; None if it did not report."""
        known_pid, report = self._reports.get(name, (0, None))
        if report is None or known_pid != pid:
            try:
                report = msgspec.json.decode(self.report_of(name).read_bytes(), type=Isolation)
            except (OSError, *UNDECODABLE):
                return None
            self._reports[name] = (pid, report)
        return report

    def forget(self, name: str) -> None:
        """Remove the report of a process."""
        self._reports.pop(name, None)
        self.report_of(name).unlink(missing_ok=True)

    def report_of(self, name: str) -> Path:
        """Where the process called `name` reports how it is isolated."""
        return self.reports / f"{name}.isolation"


def without_root(
    settings: EnvoySettings, sandbox: Sandbox, *, sockets: Sequence[str] = ()
) -> EnvoySettings:
    """`settings` with which Envoy is a user without rights, where this process is root.

    Args:
        sockets: Directories of sockets that it connects to, besides the one of `run_dir`.

    Raises:
        FailedPreconditionError: This kernel does not allow that, or Envoy could not reach the
            socket of `limits_address`.
    """
    user = gateway_user()
    if user is None:
        return settings
    able = sandbox.kernel_features()
    if reason := able.user or able.namespaces:
        message = f"Envoy would run as root ({reason}): run headrace as another user than root"
        raise FailedPreconditionError(message)
    settings = replace(settings, user=user)
    spec = sandbox.spec(
        own=[settings.socket_dir],
        keep=[],
        network=True,
        serial=SandboxPurpose.GATEWAY,
        report=settings.run_dir / "isolation",
        limits={"open_files": None, "processes": None, "oom_score_adj": None},
    )
    spec["contained"] = spec["filtered"] = False
    spec["shared"] = [str(settings.run_dir.parent), *sockets, *_folder_of_limits(settings, spec)]
    spec["hide"] = [path for path in spec["hide"] if path not in spec["shared"]]
    spec["ports"] = any(port < _FIRST_OPEN_PORT for port in settings.ports)
    spec["reach"].append(str(find_envoy(settings)))
    with contextlib.suppress(FailedPreconditionError):  # who needs authorities is told then
        spec["also"].append(str(authorities(settings)))
    return replace(settings, launcher=tuple(launched(spec, [])))


def _folder_of_limits(settings: EnvoySettings, spec: "confine.Spec") -> list[str]:
    """The folder of another system's socket: whoever listens there may come back with a new one.

    Raises:
        FailedPreconditionError: Envoy would not see it.
    """
    address = None if settings.limits_address is None else parse_address(settings.limits_address)
    if not isinstance(address, Path) or address.parent == settings.run_dir.parent:
        return []
    folder = str(address.parent.resolve())
    if folder in {*spec["hide"], *confine.PRIVATE}:
        problem = f"is in {folder}, which the sandboxed Envoy of root cannot see"
    elif not Path(folder).is_dir():
        problem = f"is in {folder}, which does not exist"
    else:
        return [folder]
    message = f"the socket of gateway.limits_service {problem}: use a separate directory"
    raise FailedPreconditionError(message)


def launched(spec: "confine.Spec", arguments: Sequence[str]) -> list[str]:
    """The command line of a process that is restricted by `spec` and then runs `arguments`."""
    return [sys.executable, "-I", "-S", str(_PROGRAM), json.dumps(spec), *arguments]


def harden_self() -> None:
    """Let neither this process nor any that it starts gain rights or dump its memory to disk.

    Before threads are started: the first holds for a thread and those that it starts.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
