"""What may a replica's process do on this machine? As little as it needs; decided here.

`confine.py` carries it out, in the process itself, before the replica's own code begins.
"""

import ctypes
import json
import logging
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from headrace.control.environment import Environment
from headrace.serving import confine

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
PROCESSES: Final = 512
"""Processes and threads of a replica, besides those for each core."""
PROCESSES_A_CORE: Final = 16


class Occasion(IntEnum):
    """Why something runs besides replicas: the serial of the user it is, which no other has.

    No replica is one of them before the 599th.
    """

    JOB = 599
    """Of the first run of a job; another one at the same time is the next."""
    CONVERSION = 601
    PROFILE = 602
    SEARCH = 603
    STREAM = 604
    """All workers of streams: they share the embedded log."""
    INSPECTION = 605


class Abilities(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel grants, each with the reason why not; empty if it does.

    `files`: a view of the file system of its own. `network`: no network. `user`: another user than
    root. `user_ns`: the first two need a user namespace. `landlock_net`: TCP can be refused.
    """

    user_ns: bool = False
    files: str = "was not asked"
    network: str = "was not asked"
    user: str = "not root"
    landlock_net: bool = False


class Probe:
    """Asks the kernel, in a process of its own that is started now; it takes about 20 ms."""

    def __init__(self) -> None:
        self._found = Abilities()
        self._thread = threading.Thread(target=self._ask, name="probe", daemon=True)
        self._thread.start()

    def result(self) -> Abilities:
        """What it found; waits for it the first time."""
        self._thread.join(_PROBE_TIMEOUT_S)
        return self._found

    def _ask(self) -> None:
        command = [sys.executable, "-I", "-S", str(_PROGRAM), "--probe"]
        try:
            done = subprocess.run(  # noqa: S603  # ourselves
                command, capture_output=True, timeout=_PROBE_TIMEOUT_S, check=True
            )
            found = msgspec.json.decode(done.stdout, type=Abilities)
        except (OSError, subprocess.SubprocessError, msgspec.MsgspecError) as error:
            why = f"it cannot be found out: {error}"
            found = Abilities(files=why, network=why, user=why)
        if found.files or found.network:
            why_not = {"files": found.files, "network": found.network}
            _LOG.warning("replicas cannot be isolated as they should be", extra=why_not)
        self._found = found


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """How a replica's process is kept apart.

    `user`: its number. `files`: it sees its own model and run directory of this home only.
    `network`: `namespace` for none, `landlock` for no TCP, `allowed` by its endpoint, or `open`
    because it cannot be closed. `problems`: what should be kept apart, and is not.
    """

    user: int
    files: bool
    network: str
    problems: tuple[str, ...] = ()


class Libraries(NamedTuple):
    """Directories that processes import from: without the first ones none can begin."""

    needed: tuple[str, ...]
    others: tuple[str, ...]


def libraries() -> Libraries:
    """The interpreter and this package, and what else this process imports from."""
    here = str(Path.cwd())
    ours = str(Path(__file__).resolve().parents[2])
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


@dataclass(slots=True, kw_only=True)
class Sandbox:
    """Makes command lines that confine what they start.

    `hide`: directories of which a replica sees only what it is given. `reports`: where each
    replica's process writes what was done to it. `abilities`: what the kernel grants. `libraries`:
    what every process imports from. `environment`: what variables they inherit.
    """

    hide: tuple[Path, ...]
    reports: Path
    abilities: Callable[[], Abilities]
    libraries: Libraries = field(default_factory=libraries)
    environment: Environment = field(default_factory=Environment)
    has_warned: bool = False
    """Whether somebody was told that what runs is less apart than it should be."""
    _known: dict[str, tuple[int, Isolation]] = field(default_factory=dict)

    @classmethod
    def of_home(cls, home: Path) -> "Sandbox":
        """For a command: `home` is hidden, and the kernel is asked once that is needed."""
        ask = cache(lambda: Probe().result())
        return cls(hide=(home.resolve(),), reports=home, abilities=ask)

    def command(
        self,
        arguments: Sequence[str],
        *,
        name: str,
        serial: int,
        own: Sequence[Path],
        keep: Sequence[Path],
        network: bool,
    ) -> list[str]:
        """`arguments`, confined.

        Args:
            own: The run directory, and what else belongs to the replica.
            keep: What it may read of `hide`; it has to be able to read it.
            network: Whether it may open connections.
        """
        report = str(self.report_of(name))
        spec = self.spec(own=own, keep=keep, network=network, serial=serial, report=report)
        return launched(spec, arguments)

    def spec(
        self,
        *,
        own: Sequence[Path],
        keep: Sequence[Path],
        network: bool,
        serial: int,
        report: str = "",
        limits: Mapping[str, int] | None = None,
    ) -> "confine.Spec":
        """What a process is to become, as `confine.py` takes it.

        Args:
            limits: Besides those of every replica.
        """
        able = self.abilities()
        apart = not able.files
        return {
            "uid": FIRST_UID + serial % UIDS if not able.user else None,
            "files": apart,
            "network": "allowed" if network else _network(able),
            "alone": True,
            "user_ns": able.user_ns,
            "hide": [str(path) for path in self.hide],
            "keep": [str(path) for path in keep],
            "own": [str(path) for path in own],
            "reach": list(self.libraries.needed),
            "also": list(self.libraries.others),
            "limits": {
                "open_files": OPEN_FILES,
                # As a user of its own, or counted in its own namespace: else others count too.
                "processes": _processes() if not able.user or (apart and able.user_ns) else None,
                **(limits or {}),
            },
            "report": report,
        }

    def isolation(self, name: str, pid: int) -> Isolation | None:
        """How the process `pid` of a replica is kept apart; None if it does not say."""
        known = self._known.get(name)
        if known is not None and known[0] == pid:
            return known[1]
        found = self._read(name)
        if found is not None:
            self._known[name] = (pid, found)
        return found

    def forget(self, name: str) -> None:
        """Remove what a replica's process wrote."""
        self._known.pop(name, None)
        self.report_of(name).unlink(missing_ok=True)

    def _read(self, name: str) -> Isolation | None:
        try:
            found = msgspec.json.decode(self.report_of(name).read_bytes(), type=Isolation)
        except (OSError, msgspec.MsgspecError):
            return None
        able = self.abilities()
        problems = list(found.problems)
        if not found.files:
            problems.append(f"sees the files of other replicas: {able.files}")
        if found.network == "open":
            problems.append(f"may open network connections: {able.network}")
        return replace(found, problems=tuple(problems))

    def report_of(self, name: str) -> Path:
        """Where the process called `name` says what was done to it."""
        return self.reports / f"{name}.isolation"


def launched(spec: "confine.Spec", arguments: Sequence[str]) -> list[str]:
    """The command line of a process that becomes what `spec` says, and then `arguments`."""
    return [sys.executable, "-I", "-S", str(_PROGRAM), json.dumps(spec), *arguments]


def harden_self() -> None:
    """Let neither this process nor any that it starts gain rights or dump its memory to disk.

    Before threads are started: the first holds for a thread and those that it starts.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _network(able: Abilities) -> str:
    """How connections are kept from a process."""
    if not able.network:
        return "namespace"
    return "landlock" if able.landlock_net else "open"


def _processes() -> int:
    return PROCESSES + PROCESSES_A_CORE * (os.cpu_count() or 1)
