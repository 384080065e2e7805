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
    """Return the names of the variables that texts reference."""
    return {name for text in texts for name in VARIABLE.findall(text)}


@dataclass(slots=True)
class Environment:
    """Environment that the processes of a control plane inherit."""

    variables: Mapping[str, str] = field(default_factory=lambda: os.environ)
    """All variables. A variable that a spec names is withheld from then on, permanently, because
    it may hold a secret.
    """
    _document: Mapping[str, Any] = field(default_factory=dict)
    _named: set[str] = field(default_factory=set)

    def withhold(self, document: Mapping[str, Any]) -> None:
        """Withhold the variables that this spec names from later processes."""
        if document is not self._document:
            self._document = document
            self._named |= named_in(_text(document), *map(options_of, _brokers(document)))

    def of(self, *told: str, parts: Iterable[str] = ()) -> dict[str, str]:
        """Return the environment of a new process.

        Args:
            told: The process's settings as text; it gets the variables that they name.
            parts: Parts of the spec, such as `endpoints`, whose variables it gets too.
        """
        document = self._document
        self._named |= named_in(*map(options_of, _brokers(document)))  # files change meanwhile
        own = named_in(*told, *(_text(document.get(part)) for part in parts))
        withheld = self._named - own
        return {name: value for name, value in self.variables.items() if name not in withheld}


def options_of(broker: str) -> str:
    """Return the content of the options file of a stream's broker, which may name secrets too."""
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
    """Return the document as JSON; no escaped character can be part of a variable's name."""
    return msgspec.json.encode(document, enc_hook=str).decode()


_LOG: Final = logging.getLogger("headrace.control")
_PROGRAM: Final = Path(confine.__file__)
_PR_SET_NO_NEW_PRIVS: Final = 38
_PROBE_TIMEOUT_S: Final = 10.0
_CONFIG: Final = "config.pbtxt"
FIRST_UID: Final = 60_578
"""First user id of replicas if this process is root, in a range that systemd leaves unused: no
other process has such an id, and it needs no user name."""
UIDS: Final = 606
OPEN_FILES: Final = 65_536
OOM_SCORE_ADJ: Final = 500
"""The kernel ends a sandboxed process before the control plane when memory runs out."""
PROCESSES: Final = 512
"""Limit of a replica's processes and threads, in addition to those for each core."""
PROCESSES_A_CORE: Final = 16
_MIN_DATA_BYTES: Final = 4 << 30
_DATA_BYTES_A_CORE: Final = 64 << 20
"""Bytes per core for thread stacks and framework buffers, which count before they are used."""
_TIMES_MODEL: Final = 8
_TIMES_BODY: Final = 8
_RESOLVER: Final = "/run/systemd/resolve"
"""Directory that /etc/resolv.conf may link to."""
_FIRST_OPEN_PORT: Final = 1024
_REMEDY: Final = (
    "allow unprivileged user namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns=0; in "
    "a container, a seccomp profile that allows unshare and mount), or have an admin set "
    "`isolation: best-effort` for the endpoint"
)


class SandboxPurpose(IntEnum):
    """Kind of sandboxed process other than a replica; its value is the serial of its user id."""

    GATEWAY = GATEWAY_USER - FIRST_UID
    JOB = 599
    SECOND_JOB = 600
    """Second job that runs at the same time."""
    CONVERSION = 601
    PROFILE = 602
    SEARCH = 603
    STREAM = 604
    """All workers of streams: they share the embedded log."""
    INSPECTION = 605


def user_of(serial: int) -> int:
    """Return the user id for a replica's serial or a `SandboxPurpose`."""
    return FIRST_UID + (
        serial if isinstance(serial, SandboxPurpose) else serial % SandboxPurpose.GATEWAY
    )


class KernelFeatures(msgspec.Struct, frozen=True, kw_only=True):
    """Isolation features of the kernel; a text is why one is missing, empty if it is available."""

    namespaces: str = "cannot be determined"
    """Private mount, network, IPC and PID namespaces for a process."""
    user_ns: bool = False
    """Whether the namespaces need a user namespace."""
    user: str = "not root"
    """Change to another user."""
    landlock: bool = False
    """Whether Landlock and seccomp are available, the alternative for processes without network."""


class KernelProbe:
    """Detects kernel features in a child process that starts immediately and takes about 20 ms."""

    def __init__(self) -> None:
        self._abilities = KernelFeatures()
        self._thread = threading.Thread(target=self._ask, name="probe", daemon=True)
        self._thread.start()

    def result(self) -> KernelFeatures:
        """Return the kernel features; the first call waits for the child process."""
        self._thread.join(_PROBE_TIMEOUT_S)
        return self._abilities

    def _ask(self) -> None:
        command = [sys.executable, "-I", "-S", str(_PROGRAM), "--probe"]
        try:
            output = output_of(command, timeout_s=_PROBE_TIMEOUT_S)
            self._abilities = msgspec.json.decode(output, type=KernelFeatures)
        except (OSError, SubprocessError, *UNDECODABLE) as error:
            reason = f"cannot be determined: {error}"
            self._abilities = KernelFeatures(namespaces=reason, user=reason)
        if self._abilities.namespaces:
            why_not = {"reason": self._abilities.namespaces, "landlock": self._abilities.landlock}
            _LOG.warning("the kernel has no namespaces to isolate processes", extra=why_not)


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """Isolation of a process, as the process reports it."""

    user: int
    """User id of the process."""
    files: bool
    """Whether it sees only its model and run directory of this home."""
    network: str
    """`namespace` or `seccomp` if they block the network, `allowed` if the endpoint allows it,
    `open` if it cannot be blocked.
    """
    memory_bytes: int | None = None
    """Limit of allocated memory in bytes; None for no limit."""
    problems: tuple[str, ...] = ()
    """Missing kinds of isolation that were accepted."""


class Libraries(NamedTuple):
    """Directories that processes import from; no process starts without the first ones."""

    needed: tuple[str, ...]
    others: tuple[str, ...]


def libraries() -> Libraries:
    """Return the directories of the interpreter, of this package and of other imports."""
    here = str(Path.cwd())
    package_root = str(Path(__file__).resolve().parents[3])
    needed = [sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parent), package_root]
    # `python -m` puts the working directory first, which often holds a home.
    others = [path for path in sys.path if path and path != here and Path(path).exists()]
    return Libraries(
        needed=tuple(dict.fromkeys(needed)),
        others=tuple(path for path in dict.fromkeys(others) if path not in needed),
    )


def files_of(model: Path) -> list[Path]:
    """Return the paths that a process reads to load a model, including those of Triton's layout.

    In that layout a numbered directory holds the model, and its parent the inputs and outputs.
    """
    directory = model if model.is_dir() else model.parent
    config = directory.parent / _CONFIG
    if not directory.name.isdecimal() or not config.is_file():
        return [directory]
    # A process that may not read it can still serve models that need no such file.
    readable = config.stat().st_mode & stat.S_IROTH
    return [directory, config] if readable else [directory]


def data_limit(size_bytes: int, *, max_body_bytes: int = 0) -> int:
    """Return the memory limit in bytes of a process that serves models of this total size.

    The kernel refuses more (RLIMIT_DATA), so only a request that needs more fails. Bodies count
    as decoded, in a batch.
    """
    minimum = _MIN_DATA_BYTES + _DATA_BYTES_A_CORE * (os.cpu_count() or 1)
    return minimum + _TIMES_MODEL * size_bytes + _TIMES_BODY * max_body_bytes


@dataclass(slots=True, kw_only=True)
class Sandbox:
    """Builds command lines of restricted processes."""

    hide: tuple[Path, ...]
    """Hidden directories; a process sees only the parts passed to it."""
    reports: Path
    """Directory of isolation reports. `kernel_features` returns what the kernel supports."""
    kernel_features: Callable[[], KernelFeatures]
    libraries: Libraries = field(default_factory=libraries)
    """Directories that every process imports from."""
    environment: Environment = field(default_factory=Environment)
    """Variables that processes inherit."""
    _reports: dict[str, tuple[int, Isolation]] = field(default_factory=dict)

    @classmethod
    def of_home(cls, home: Path) -> "Sandbox":
        """Return the sandbox of a CLI command: it hides `home` and probes the kernel lazily."""
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
        """Return the command line of a process that outlives this one: see `Process.spawn`.

        Args:
            own: The run directory and other paths that the process may write.
            keep: Paths below `hide` that it may read; its user must have read permission.
            network: Whether it may open connections.
            passed: A descriptor that it inherits; all others are closed.

        Raises:
            FailedPreconditionError: The process cannot be isolated.
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
        """Return the restrictions of a process in the form that `confine.py` reads.

        Args:
            limits: Limits in addition to those of every process.
            best_effort: Continue with the features that the kernel supports.
            forks: Whether it has to start processes.

        Raises:
            FailedPreconditionError: The process cannot be isolated.
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
                # Only with a separate user or user namespace: else other processes count too.
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
        """Return the user id that a process changes to; None keeps this process's user."""
        return None if self.kernel_features().user else user_of(serial)

    def _kind(self, *, network: bool, forks: bool) -> tuple[str, list[str]]:
        """Return the kind of sandbox that this kernel supports, and missing isolation."""
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
        """Return the isolation that process `pid` called `name` reported; None without a report."""
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
        """Return the path of the isolation report of the process called `name`."""
        return self.reports / f"{name}.isolation"


def without_root(
    settings: EnvoySettings, sandbox: Sandbox, *, sockets: Sequence[str] = ()
) -> EnvoySettings:
    """Return `settings` that run Envoy as an unprivileged user if this process is root.

    Args:
        sockets: Directories of sockets that it connects to, in addition to `run_dir`.

    Raises:
        FailedPreconditionError: This kernel does not support that, or Envoy could not reach the
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
    with contextlib.suppress(FailedPreconditionError):  # reported when authorities are needed
        spec["also"].append(str(authorities(settings)))
    return replace(settings, launcher=tuple(launched(spec, [])))


def _folder_of_limits(settings: EnvoySettings, spec: "confine.Spec") -> list[str]:
    """Return the folder of another system's socket, because its server may create a new socket.

    Raises:
        FailedPreconditionError: Envoy would not see the folder.
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
    """Return the command line that runs `arguments` in a process restricted by `spec`."""
    return [sys.executable, "-I", "-S", str(_PROGRAM), json.dumps(spec), *arguments]


def harden_self() -> None:
    """Forbid this process and its children to gain privileges or to dump memory to disk.

    Call it before threads start: the privilege setting holds per thread and its children.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
