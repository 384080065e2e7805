"""Search of the optimizer in sandboxed processes, which candidates may crash.

A candidate that ends the process, hangs or takes too much memory is abandoned with the reason, and
the search continues in another process from its journal.
"""

import os
import shutil
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from headrace.control.local.sandbox import Sandbox, SandboxPurpose
from headrace.control.sandboxed.run import OWN, SandboxedRun, SandboxLimits, read_result
from headrace.core import FailedPreconditionError, UnsupportedModelError
from headrace.optimize.search.journal import (
    Begun,
    CandidateFailed,
    Event,
    JournalReader,
    SearchJournal,
    SearchState,
    read_journal,
    state_of,
)
from headrace.optimize.search.process import ERROR, REQUEST, SearchError, SearchRequest
from headrace.registry import copy_files
from headrace.serving.memory import available_bytes

PROGRAM: Final = "headrace.optimize.search.process"
_MAX_STARTS: Final = 40
_STEP_LIMIT_S: Final = 600.0
_OF_AVAILABLE: Final = 0.8
_NEEDED: Final = frozenset({"score"})
"""Steps that the search cannot do without."""
_MAX_ARTIFACT_BYTES: Final = 1 << 36
_KINDS: Final = ("model", "data", "teach", "tokenizer")
"""Kinds of inputs: fields of `SearchArguments`, and directories of their copies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchArguments:
    """Inputs of a search; None for absent ones."""

    model: Path
    data: Path | None = None
    teach: Path | None = None
    tokenizer: Path | None = None


@dataclass(slots=True, kw_only=True)
class SandboxedSearch:
    """A search in separate processes, with a directory that outlives them.

    It continues from the journal in that directory.
    """

    folder: Path
    sandbox: Sandbox
    step_limit_s: float = _STEP_LIMIT_S
    """Longest duration of one step in seconds."""
    program: str = PROGRAM

    @classmethod
    def of_home(cls, home: Path, key: str) -> "SandboxedSearch":
        """Return the search of a CLI command; `home` is hidden from candidates."""
        return cls(folder=home.resolve() / "optimize" / key, sandbox=Sandbox.of_home(home))

    @property
    def own(self) -> Path:
        """Directory of the processes: journal, candidates, result."""
        return self.folder / OWN

    def forget(self) -> None:
        """Remove the search's results."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def state(self) -> SearchState:
        """Return the progress of the search."""
        return state_of(read_journal(self.own))

    def run(
        self,
        request: SearchRequest,
        arguments: SearchArguments,
        *,
        on_event: Callable[[Event, SearchState], None],
    ) -> SearchState:
        """Search to the end, and report each step.

        Raises:
            UnsupportedModelError: The model cannot be loaded.
            InvalidArgumentError: The data cannot be used.
            HeadraceError: The error of the search's process.
        """
        run = SandboxedRun(sandbox=self.sandbox, folder=self.folder, purpose=SandboxPurpose.SEARCH)
        self._prepare(run, request, arguments)
        reader, state = JournalReader(self.own), SearchState()
        for event in reader.read():
            state.apply(event)
        error: Exception = UnsupportedModelError("it was not tried")
        for _ in range(_MAX_STARTS):
            reason = self._run_process(run, reader, state, on_event)
            if not reason:
                return state
            error = UnsupportedModelError(reason)
            failure = read_result(self.own / ERROR, SearchError)
            if failure is not None:  # an error about the inputs
                (self.own / ERROR).unlink(missing_ok=True)
                # Replace paths in the process's directories by the user's file names.
                error = failure.error({f"{run.inputs / kind}/": "" for kind in _KINDS})
            if state.begun is None or state.begun.step in _NEEDED:
                raise error
            self._give_up(state.begun, state, str(error))
        msg = f"its process ended {_MAX_STARTS} times: {error}"
        raise UnsupportedModelError(msg)

    def artifact(self, state: SearchState, target: Path) -> Path:
        """Copy the chosen candidate into `target`, and return the copy.

        Raises:
            InvalidArgumentError: No candidate was chosen, or it is not a directory of plain files.
        """
        assert state.wrote is not None, "asked only then"
        source = self.own / state.wrote.path
        return copy_files(source, target, beneath=self.own, max_bytes=_MAX_ARTIFACT_BYTES)

    def _prepare(
        self, run: SandboxedRun, request: SearchRequest, arguments: SearchArguments
    ) -> None:
        """Copy the inputs to a directory that the process may read, and write the request."""
        home = self.folder.parent.parent
        if not home.exists():
            home.mkdir(parents=True, mode=0o700)  # copies of the data lie below
        for directory in (self.folder, self.own):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.geteuid() == 0:
            _let_anybody_write(self.own)
        shutil.rmtree(run.inputs, ignore_errors=True)
        copies = {
            kind: "" if path is None else str(run.add_input(path, kind))
            for kind in _KINDS
            for path in [getattr(arguments, kind)]
        }
        (self.own / ERROR).unlink(missing_ok=True)
        source = copies.pop("model")
        run.write_request(REQUEST, msgspec.structs.replace(request, source=source, **copies))

    def _run_process(
        self,
        run: SandboxedRun,
        reader: JournalReader,
        state: SearchState,
        on_event: Callable[[Event, SearchState], None],
    ) -> str:
        """Run a process; return why it was killed or ended early; empty if it did not."""
        limits = SandboxLimits(
            timeout_s=self.step_limit_s,
            timeout_reason=f"it took longer than {self.step_limit_s:g} s",
            memory_bytes=int(available_bytes() * _OF_AVAILABLE),
        )
        started = state.begun
        with run.started(self.program) as running:
            for _ in running.watch(limits):
                for event in reader.read():
                    state.apply(event)
                    on_event(event, state)
                if state.begun is not started:
                    started, running.since = state.begun, time.monotonic()
        return running.reason

    def _give_up(self, started: Begun, state: SearchState, reason: str) -> None:
        """Record in the journal that the step that ended the process must not be retried."""
        tried = state.candidates.get(started.name)
        title = tried.title if tried else started.name
        try:
            journal = SearchJournal(self.own)
            journal.write(
                CandidateFailed(at_s=state.at_s, name=started.name, title=title, reason=reason)
            )
            journal.close()
        except OSError as error:
            msg = f"{title} spoiled the search's journal ({error.strerror}): {reason}"
            raise UnsupportedModelError(msg) from error
        # This search's reader reads it with the next process's events.
        state.begun = None


def _let_anybody_write(folder: Path) -> None:
    """Make an earlier process's files writable for the current owner of `folder`.

    The earlier process may have had another user. Other users have no access to the folder. No
    process of the search runs meanwhile; links are not changed.
    """
    for path in folder.rglob("*"):
        info = path.lstat()
        if stat.S_ISDIR(info.st_mode):
            path.chmod(0o777)
        elif stat.S_ISREG(info.st_mode) and info.st_nlink == 1:
            path.chmod(0o666)


def check_folder(home: Path, key: str) -> None:
    """Check that there is a search to continue; raise an error if not."""
    if not (home / "optimize" / key / OWN).is_dir():
        msg = (
            "there is nothing to resume: no search of this model with these options was "
            "interrupted here"
        )
        raise FailedPreconditionError(msg)
