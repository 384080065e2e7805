"""Complete test runs: a pytest plugin that counts what ran, and a command that reruns.

A run is complete if every collected test has run, no worker of pytest-xdist crashed and pytest met
no internal error. Any other run ends with the status `EXIT_INCOMPLETE`, regardless of its tests.

    python -m scripts.run_tests ARGUMENTS...

runs `python -m pytest ARGUMENTS...`. With RERUN=1 in the environment, an incomplete run is repeated
whole, and the failed tests of a complete run are repeated alone, in one process; each only once.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec
import pytest

EXIT_INCOMPLETE: Final = 70
"""Not one of pytest's own, which are below 10."""
SUMMARY: Final = "PYTEST_RUN_SUMMARY"
"""Environment variable: the file that a run's summary is written to."""
FAILED_ALONE: Final = ("--last-failed", "--last-failed-no-failures=none", "-n", "0")
_STOPS_EARLY: Final = ("collectonly", "maxfail", "stepwise")


class RunSummary(msgspec.Struct, kw_only=True):
    """What one pytest process ran.

    `outcomes`: passed, failed or skipped, of each test that ran to its end, by node id. `failed`:
    node ids of tests and modules that failed, those of a crashed worker included.
    """

    collected: list[str] = []
    outcomes: dict[str, str] = {}
    failed: list[str] = []
    crashed_workers: list[str] = []
    internal_error: str = ""

    @property
    def why_incomplete(self) -> str:
        """Why the run does not tell about all tests; empty if it is complete."""
        ran = len(self.outcomes.keys() & set(self.collected))
        count = f"{ran} of {len(self.collected)} collected tests ran"
        if self.crashed_workers:
            return f"workers crashed ({', '.join(self.crashed_workers)}); {count}"
        if self.internal_error:
            return f"internal error ({self.internal_error}); {count}"
        return count if ran < len(self.collected) else ""


class RunRecorder:
    """The plugin: fills a `RunSummary` in the process that reports, never in a worker."""

    def __init__(self, config: pytest.Config) -> None:
        self.summary = RunSummary()
        self._skipped: set[str] = set()
        # Popped, so that a pytest that a test starts does not write to it.
        self._file = os.environ.pop(SUMMARY, "")
        self._stops_early = any(config.getoption(name, None) for name in _STOPS_EARLY)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note the tests; without pytest-xdist, or with `-n 0`."""
        self.summary.collected = [item.nodeid for item in session.items]

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """Note what a worker has collected; all workers collect the same."""
        self.summary.collected = list(ids)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object, error: object | None) -> None:
        """Note a worker that did not end by itself."""
        if error is not None:
            gateway = getattr(node, "gateway", None)
            self.summary.crashed_workers.append(str(getattr(gateway, "id", node)))

    def pytest_internalerror(self, excrepr: object) -> None:
        """Note that pytest itself failed, here or in a worker."""
        self.summary.internal_error = str(excrepr).strip().rpartition("\n")[2]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a module that cannot be imported."""
        if report.failed:
            self.summary.failed.append(report.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a phase of a test; xdist reports a crash as a phase of its own, "???"."""
        name, summary = report.nodeid, self.summary
        if report.failed and name not in summary.failed:
            summary.failed.append(name)
        if report.skipped:
            self._skipped.add(name)
        if report.when == "teardown":
            ended = "skipped" if name in self._skipped else "passed"
            summary.outcomes[name] = "failed" if name in summary.failed else ended

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the summary, and let no incomplete run pass."""
        if self._file:
            Path(self._file).write_bytes(msgspec.json.encode(self.summary))
        if self.summary.why_incomplete and not self._stops_early:
            session.exitstatus = EXIT_INCOMPLETE

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say why a run is incomplete, above pytest's closing line."""
        if (why := self.summary.why_incomplete) and not self._stops_early:
            terminalreporter.section("incomplete run", red=True)
            terminalreporter.write_line(why)


def record_run(config: pytest.Config) -> None:
    """Register the plugin; for `pytest_configure`."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(RunRecorder(config))


class Verdict(StrEnum):
    """What a run shows of its tests."""

    PASSED = "passed"
    FAILED = "failed"
    INCOMPLETE = "incomplete"


class EndedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A pytest process that has ended; `summary` is None if it left none, as a killed one does."""

    status: int
    summary: RunSummary | None

    @property
    def verdict(self) -> Verdict:
        """`FAILED` only if all tests ran, which a usage error, say, does not show."""
        if self.summary is None or self.summary.why_incomplete:
            return Verdict.INCOMPLETE
        match self.status:
            case pytest.ExitCode.OK | pytest.ExitCode.NO_TESTS_COLLECTED:
                return Verdict.PASSED
            case pytest.ExitCode.TESTS_FAILED if self.summary.failed:
                return Verdict.FAILED
            case _:
                return Verdict.INCOMPLETE

    @property
    def why(self) -> str:
        """The reason for a verdict other than `PASSED`."""
        if self.summary is None:
            return f"pytest ended with status {self.status} and left no summary"
        failed = f"{len(self.summary.failed)} failed, exit status {self.status}"
        return self.summary.why_incomplete or failed


def run_with_reruns(start: Callable[[Sequence[str]], EndedRun], say: Callable[[str], None]) -> int:
    """Run pytest until all tests have passed or a rerun has failed; return the exit status.

    Args:
        start: Runs pytest with further arguments.
        say: Prints a line.
    """
    run = start(())
    if run.verdict is Verdict.INCOMPLETE:
        say(f"incomplete run: {run.why}; running all tests again")
        run = start(())
    if run.verdict is Verdict.FAILED:
        assert run.summary is not None, "else it is incomplete"
        say(f"{run.why}; running the failed tests again, alone")
        failed = set(run.summary.failed)
        run = start(FAILED_ALONE)
        passed = run.summary.outcomes.keys() if run.summary is not None else set[str]()
        if run.verdict is Verdict.PASSED and (missing := failed - passed):
            say(f"incomplete rerun: {', '.join(sorted(missing))} did not run")
            return EXIT_INCOMPLETE
    if run.verdict is Verdict.PASSED:
        return run.status
    say(f"{run.verdict} in the rerun: {run.why}")
    return run.status or EXIT_INCOMPLETE


def main(arguments: Sequence[str]) -> int:
    """Run pytest with `arguments`; in a process of its own where the run may be repeated."""
    command = [sys.executable, "-m", "pytest", *arguments]
    if os.environ.pop("RERUN", "") != "1":
        os.execv(sys.executable, command)  # noqa: S606  # ourselves
    with tempfile.TemporaryDirectory(prefix="run-tests-") as folder:
        # A cache of its own: what failed in other runs is not repeated here.
        command += ["-o", f"cache_dir={folder}/cache"]
        file = Path(folder, "summary.json")

        def start(more: Sequence[str]) -> EndedRun:
            file.unlink(missing_ok=True)
            environment = {**os.environ, SUMMARY: str(file)}
            done = subprocess.run([*command, *more], env=environment, check=False)  # noqa: S603  # ourselves
            summary = None
            if file.exists():
                summary = msgspec.json.decode(file.read_bytes(), type=RunSummary)
            return EndedRun(status=done.returncode, summary=summary)

        return run_with_reruns(start, lambda line: print(f"run-tests: {line}", flush=True))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
