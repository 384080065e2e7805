"""Carries out a search of the optimizer in a process that candidates may spoil, confined.

A candidate that ends the process, hangs or takes too much memory is given up with the reason, and
the search goes on in another process: its journal says how far it was.
"""

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

import msgspec

from headrace.control.conversion import how_it_ended, readable_copy
from headrace.control.process import python_module
from headrace.control.sandbox import Probe, Sandbox
from headrace.core import FailedPreconditionError, UnsupportedModelError
from headrace.optimize.search.asked import SearchRequest
from headrace.optimize.search.journal import (
    Begun,
    Event,
    Failed,
    Journal,
    JournalReader,
    read_journal,
)
from headrace.optimize.search.process import ERROR, REQUEST, SearchError
from headrace.optimize.search.state import State, state_of
from headrace.serving import confine
from headrace.serving.memory import available_bytes, resident_bytes

PROGRAM: Final = "headrace.optimize.search.process"
_OWN: Final = "own"
_GIVEN: Final = "given"
_SERIAL: Final = 603
"""Of the user that searches run as under root: no replica is it before the 603rd, and neither a
profile nor a conversion ever is."""
_FILE_BYTES: Final = 1 << 40
_LOOK_S: Final = 0.1
_MOST_STARTS: Final = 40
_STEP_LIMIT_S: Final = 600.0
_OF_AVAILABLE: Final = 0.8
_NEEDED: Final = frozenset({"score"})
"""Steps without which nothing can be found out."""
_LAST_WORDS: Final = 400
_MAX_ERROR_BYTES: Final = 1 << 20
_MAX_ARTIFACT_BYTES: Final = 1 << 36


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a search is given; None for what there is not."""

    model: Path
    data: Path | None = None
    teach: Path | None = None
    tokenizer: Path | None = None


@dataclass(slots=True, kw_only=True)
class SearchApart:
    """Searches in processes of their own, in a directory that outlives them.

    `folder`: of this search, whose journal it goes on with. `sandbox`: how the processes are kept
    apart. `step_limit_s`: how long one step may take.
    """

    folder: Path
    sandbox: Sandbox
    step_limit_s: float = _STEP_LIMIT_S
    program: str = PROGRAM
    _log: bytes = field(default=b"")

    @classmethod
    def of_home(cls, home: Path, key: str) -> "SearchApart":
        """For a command; `home` is hidden from what is tried."""
        ask = cache(lambda: Probe().result())
        home = home.resolve()
        sandbox = Sandbox(hide=(home,), reports=home, abilities=ask)
        return cls(folder=home / "optimize" / key, sandbox=sandbox)

    @property
    def own(self) -> Path:
        """The directory of the processes: journal, candidates, result."""
        return self.folder / _OWN

    def forget(self) -> None:
        """Begin anew."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def state(self) -> State:
        """How far the search is."""
        return state_of(read_journal(self.own))

    def run(
        self, request: SearchRequest, given: Given, *, on_event: Callable[[Event, State], None]
    ) -> State:
        """Search to the end, and tell of each step.

        Raises:
            UnsupportedModelError: The model cannot be loaded.
            InvalidArgumentError: The data cannot be used.
            HeadraceError: As the search's process says.
        """
        self._lay(request, given)
        reader, state = JournalReader(self.own), State()
        for event in reader.read():
            state.apply(event)
        error: Exception = UnsupportedModelError("it was not tried")
        for _ in range(_MOST_STARTS):
            why = self._one_process(reader, state, on_event)
            if not why:
                return state
            error = self._error(why)
            if state.begun is None or state.begun.step in _NEEDED:
                raise error
            self._give_up(state.begun, state, str(error))
        msg = f"its process ended {_MOST_STARTS} times: {error}"
        raise UnsupportedModelError(msg)

    def artifact(self, state: State, target: Path) -> Path:
        """A copy of what was chosen, in `target`; no link that may lie there is followed.

        Raises:
            UnsupportedModelError: There is none, or it is no directory of plain files.
        """
        assert state.wrote is not None, "asked only then"
        source = self.own / state.wrote.path
        copied = 0
        for file in _plain_files(source):
            made = target / file.relative_to(source)
            made.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as stream, made.open("xb") as out:
                shutil.copyfileobj(stream, out)
            copied += made.stat().st_size
            if copied > _MAX_ARTIFACT_BYTES:
                msg = f"what was chosen is larger than {_MAX_ARTIFACT_BYTES} bytes"
                raise UnsupportedModelError(msg)
        return target

    def _lay(self, request: SearchRequest, given: Given) -> None:
        """Put what is given where the process may read it, and what is asked beside."""
        home = self.folder.parent.parent
        if not home.exists():
            home.mkdir(parents=True, mode=0o700)  # copies of the data lie below
        self.own.mkdir(parents=True, exist_ok=True, mode=0o700)
        place = self.folder / _GIVEN
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(mode=0o755)

        def laid(path: Path | None, name: str) -> str:
            return "" if path is None else str(readable_copy(path, place / name))

        here = msgspec.structs.replace(
            request,
            source=laid(given.model, "model"),
            data=laid(given.data, "data"),
            teach=laid(given.teach, "teach"),
            tokenizer=laid(given.tokenizer, "tokenizer"),
        )
        (self.own / ERROR).unlink(missing_ok=True)
        (self.own / REQUEST).write_bytes(msgspec.json.encode(here))
        (self.own / REQUEST).chmod(0o644)

    def _one_process(
        self, reader: JournalReader, state: State, on_event: Callable[[Event, State], None]
    ) -> str:
        """Why the process had to be ended, or ended by itself before the search's end."""
        spec = self.sandbox.spec(
            own=[self.own],
            keep=[self.folder / _GIVEN],
            network=False,
            serial=_SERIAL,
            report=str(self.folder / "isolation"),
            limits={"file_bytes": _FILE_BYTES},
        )
        most_bytes = int(available_bytes() * _OF_AVAILABLE)
        with (self.folder / "log").open("w+b") as log:
            process = subprocess.Popen(  # noqa: S603  # ourselves
                [
                    *(sys.executable, "-I", "-S", confine.__file__, json.dumps(spec)),
                    *python_module(self.program),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"HOME": str(self.own), "TMPDIR": str(self.own)},
            )
            try:
                why = self._watch(process, reader, state, on_event, most_bytes)
            finally:
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)  # what it started ends with it
                code = process.wait()
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LAST_WORDS))
            return why or how_it_ended(code, log.read().decode(errors="replace"))

    def _watch(
        self,
        process: "subprocess.Popen[bytes]",
        reader: JournalReader,
        state: State,
        on_event: Callable[[Event, State], None],
        most_bytes: int,
    ) -> str:
        """Follow the journal; why the process has to be ended, empty once it ended by itself."""
        begun, since = state.begun, time.monotonic()
        while True:
            has_ended = process.poll() is not None
            for event in reader.read():
                state.apply(event)
                on_event(event, state)
            if has_ended:
                return ""
            if state.begun is not begun:
                begun, since = state.begun, time.monotonic()
            if time.monotonic() > since + self.step_limit_s:
                return f"it took longer than {self.step_limit_s:g} s"
            if resident_bytes(process.pid) > most_bytes:
                return f"it took more than {most_bytes} bytes of memory"
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_S)

    def _give_up(self, begun: Begun, state: State, why: str) -> None:
        """Say in the journal that the step that ended the process is not to be tried again."""
        tried = state.tried.get(begun.name)
        title = tried.title if tried else begun.name
        journal = Journal(self.own)
        try:
            journal.write(Failed(at_s=state.at_s, name=begun.name, title=title, reason=why))
        finally:
            journal.close()
        # The reader of this search takes it in with the next process's events.
        state.begun = None

    def _error(self, why: str) -> Exception:
        """What the process says was wrong with what it was given."""
        try:
            descriptor = os.open(self.own / ERROR, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            (self.own / ERROR).unlink()
            with os.fdopen(descriptor, "rb") as stream:
                told = msgspec.json.decode(stream.read(_MAX_ERROR_BYTES), type=SearchError)
        except (OSError, msgspec.MsgspecError):
            return UnsupportedModelError(why)
        return told.error(self._names())

    def _names(self) -> dict[str, str]:
        """How people call what lies in the process's directories."""
        place = self.folder / _GIVEN
        return {f"{place / kind}/": "" for kind in ("model", "data", "teach", "tokenizer")}


def _plain_files(folder: Path) -> Iterator[Path]:
    """The files of a directory that somebody else wrote.

    Raises:
        UnsupportedModelError: Something else lies there.
    """
    for path in sorted(folder.rglob("*")):
        kind = path.lstat().st_mode
        if stat.S_ISREG(kind):
            yield path
        elif not stat.S_ISDIR(kind):
            msg = f"what was chosen holds something that is no plain file: {path.name}"
            raise UnsupportedModelError(msg)


def check_folder(home: Path, key: str) -> None:
    """Raise if there is no search to go on with."""
    if not (home / "optimize" / key / _OWN).is_dir():
        msg = (
            "there is nothing to resume: no search of this model with these options was "
            "interrupted here"
        )
        raise FailedPreconditionError(msg)
