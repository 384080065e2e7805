"""Complete and incomplete test runs, by real runs of pytest and pytest-xdist."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from scripts.run_tests import EXIT_INCOMPLETE, FAILED_ALONE, EndedRun, RunSummary, run_with_reruns

ROOT = Path(__file__).parents[3]
CONFTEST = """
from scripts.run_tests import record_run as pytest_configure
"""
GOOD = """
import pytest
@pytest.mark.parametrize("i", range(5))
def test_passes(i): pass
"""
FAILS_ONCE = """
from pathlib import Path
ran = Path(__file__).with_name("ran")
def test_passes(): pass
def test_fails_beside_others():
    before = ran.exists()
    ran.touch()
    assert before
"""
FAILS = """
def test_fails(): assert False
"""
CRASHES = """
import os
def test_crashes(): os._exit(1)
def test_after(): pass
"""
CRASHES_ONCE = """
import os
from pathlib import Path
ran = Path(__file__).with_name("ran")
def test_crashes_once():
    if not ran.exists():
        ran.touch()
        os._exit(1)
"""
INTERNAL_ERROR = """
def pytest_runtest_logreport(report):
    if "test_b" in report.nodeid: raise RuntimeError("pytest is broken")
"""
LOSES_TESTS = """
def pytest_runtestloop(session):
    for item in session.items[:2]:
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
    return True
"""


class Nested:
    """A directory of tests, and what pytest says of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "conftest.py").write_text(CONFTEST)

    def write(self, **modules: str) -> None:
        for name, text in modules.items():
            with (self.folder / f"{name}.py").open("a") as file:
                file.write(text)

    def run(self, *arguments: str, reruns: bool = False) -> "subprocess.CompletedProcess[str]":
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        environment |= {"PYTHONPATH": str(ROOT), "RERUN": "1" if reruns else "0"}
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # of which each start takes long
        plugins = ("-p", "xdist.plugin", "-p", "xdist.looponfail")
        options = ("-p", "no:cacheprovider") if not reruns else ()
        return subprocess.run(  # noqa: S603  # ourselves
            [
                sys.executable,
                "-m",
                "scripts.run_tests",
                "-c",
                os.devnull,
                *plugins,
                *options,
                *arguments,
                ".",
            ],
            cwd=self.folder,
            env=environment | {"PYTEST_RUN_SUMMARY": "" if reruns else str(self.folder / "said")},
            capture_output=True,
            text=True,
            check=False,
        )

    def summary(self) -> RunSummary:
        return msgspec.json.decode((self.folder / "said").read_bytes(), type=RunSummary)


@pytest.fixture
def nested(tmp_path: Path) -> Nested:
    return Nested(tmp_path)


XDIST = pytest.mark.parametrize("jobs", ["0", "2"])


@pytest.mark.slow
@XDIST
def test_a_complete_run_keeps_its_status_and_counts_what_ran(nested: Nested, jobs: str) -> None:
    nested.write(test_a=GOOD, test_b=FAILS)

    done = nested.run("-n", jobs)

    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "1 failed, 5 passed" in done.stdout
    summary = nested.summary()
    assert len(summary.collected) == len(summary.outcomes) == 6
    assert summary.failed == ["test_b.py::test_fails"]
    assert summary.outcomes["test_b.py::test_fails"] == "failed"
    assert summary.outcomes["test_a.py::test_passes[0]"] == "passed"
    assert not summary.why_incomplete


@pytest.mark.slow
def test_a_crashed_worker_makes_a_run_incomplete(nested: Nested) -> None:
    nested.write(test_a=GOOD, test_b=CRASHES)

    done = nested.run("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")

    assert done.returncode == EXIT_INCOMPLETE
    assert "incomplete run" in done.stdout
    assert nested.summary().crashed_workers


@pytest.mark.slow
@XDIST
def test_an_internal_error_makes_a_run_incomplete(nested: Nested, jobs: str) -> None:
    nested.write(test_a=GOOD, test_b=GOOD, conftest=INTERNAL_ERROR)

    done = nested.run("-n", jobs)

    assert "INTERNALERROR" in done.stdout + done.stderr
    assert done.returncode == EXIT_INCOMPLETE
    assert nested.summary().internal_error == "RuntimeError: pytest is broken"


@pytest.mark.slow
def test_a_run_of_fewer_tests_than_collected_does_not_pass(nested: Nested) -> None:
    nested.write(test_a=GOOD, conftest=LOSES_TESTS)

    done = nested.run("-n", "0")

    assert "2 passed" in done.stdout
    assert done.returncode == EXIT_INCOMPLETE
    assert nested.summary().why_incomplete == "2 of 5 collected tests ran"


@pytest.mark.slow
@pytest.mark.parametrize("option", ["-x", "--collect-only"])
def test_a_run_that_was_asked_to_stop_early_keeps_its_status(nested: Nested, option: str) -> None:
    nested.write(test_a=FAILS, test_b=GOOD)

    done = nested.run("-n", "0", option)

    expected = pytest.ExitCode.TESTS_FAILED if option == "-x" else pytest.ExitCode.OK
    assert done.returncode == expected


@pytest.mark.slow
def test_deselected_tests_are_not_missed(nested: Nested) -> None:
    nested.write(test_a=GOOD, test_b=FAILS)

    done = nested.run("-n", "2", "-k", "passes")

    assert done.returncode == 0, done.stdout
    assert len(nested.summary().collected) == 5


@pytest.mark.slow
def test_failed_tests_of_a_complete_run_are_repeated_alone(nested: Nested) -> None:
    nested.write(test_a=GOOD, test_b=FAILS_ONCE)

    done = nested.run("-n", "2", reruns=True)

    assert done.returncode == 0, done.stdout
    assert "1 failed, 6 passed" in done.stdout
    assert "running the failed tests again, alone" in done.stdout
    assert "1 passed" in done.stdout.rpartition("run-tests:")[2]


@pytest.mark.slow
def test_an_incomplete_run_is_repeated_whole(nested: Nested) -> None:
    nested.write(test_a=GOOD, test_b=CRASHES_ONCE)

    done = nested.run("-n", "2", reruns=True)

    assert done.returncode == 0, done.stdout
    assert "running all tests again" in done.stdout
    assert "6 passed" in done.stdout.rpartition("run-tests:")[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [CRASHES, FAILS, "import nothing_of_this_name"],
    ids=["crash", "failure", "import error"],
)
def test_what_happens_twice_fails(nested: Nested, text: str) -> None:
    nested.write(test_a=GOOD, test_b=text)

    done = nested.run("-n", "2", reruns=True)

    assert done.returncode not in {0, pytest.ExitCode.NO_TESTS_COLLECTED}
    assert "in the rerun" in done.stdout


COMPLETE = RunSummary(collected=["a", "b"], outcomes={"a": "passed", "b": "passed"})
FAILED = RunSummary(collected=["a", "b"], outcomes={"a": "passed", "b": "failed"}, failed=["b"])
ALONE = RunSummary(collected=["b"], outcomes={"b": "passed"})
OTHER = RunSummary(collected=["a"], outcomes={"a": "passed"})
PART = RunSummary(collected=["a", "b"], outcomes={"a": "passed"})
WHOLE: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("runs", "started", "status"),
    [
        ([(0, COMPLETE)], [WHOLE], 0),
        ([(1, FAILED), (0, ALONE)], [WHOLE, FAILED_ALONE], 0),
        ([(1, FAILED), (1, FAILED)], [WHOLE, FAILED_ALONE], 1),
        ([(1, FAILED), (0, OTHER)], [WHOLE, FAILED_ALONE], 70),
        ([(1, FAILED), (5, RunSummary())], [WHOLE, FAILED_ALONE], 70),
        ([(1, FAILED), (-9, None)], [WHOLE, FAILED_ALONE], -9),
        ([(0, PART), (0, COMPLETE)], [WHOLE, WHOLE], 0),
        ([(70, PART), (0, PART)], [WHOLE, WHOLE], 70),
        ([(-9, None), (0, COMPLETE)], [WHOLE, WHOLE], 0),
        ([(-9, None), (-9, None)], [WHOLE, WHOLE], -9),
        ([(0, None), (0, None)], [WHOLE, WHOLE], 70),
        ([(70, PART), (1, FAILED), (0, ALONE)], [WHOLE, WHOLE, FAILED_ALONE], 0),
        ([(70, PART), (1, FAILED), (70, PART)], [WHOLE, WHOLE, FAILED_ALONE], 70),
        ([(2, COMPLETE), (2, COMPLETE)], [WHOLE, WHOLE], 2),
    ],
)
def test_what_is_repeated(
    runs: list[tuple[int, RunSummary | None]], started: list[tuple[str, ...]], status: int
) -> None:
    left = [EndedRun(status=ended, summary=summary) for ended, summary in runs]
    calls: list[Sequence[str]] = []

    def start(more: Sequence[str]) -> EndedRun:
        calls.append(more)
        return left.pop(0)

    assert run_with_reruns(start, lambda _: None) == status
    assert calls == started
