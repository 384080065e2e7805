"""One system with traffic, a rollout, streams and a job, and a browser that looks at it."""

import contextlib
import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from headrace.cli import main
from headrace.streaming.brokers.log.broker import LogBroker
from headrace.streaming.records import NewRecord
from tests.e2e.console.site import Site
from tests.e2e.control.system import System
from tests.e2e.rollouts.model_files import write_version
from tests.e2e.rollouts.rollout import Rollout, callers, canary, endpoint

ROOT: Final = Path(__file__).parents[3]
_INSTALL: Final = ROOT / "scripts" / "setup.sh"
_INSTALL_WITHIN_S: Final = 300.0
CONSOLE: Final = "headrace.console:build_console"
_TOLERANT: Final = {
    "errors": {"margin": 0.5},
    "rejections": {"margin": 0.5},
    "latency": {"quantile": 0.9, "margin_ratio": 100.0},
    "predictions": {"margin": 0.9},
}
"""What people look at for minutes must not be ended by a machine that is slow for a moment."""


@pytest.fixture(scope="session")
def chromium() -> str:
    """Debian's Chromium."""
    if shutil.which("chromium") is None:
        done = subprocess.run(
            [_INSTALL, "chromium"],
            capture_output=True,
            text=True,
            timeout=_INSTALL_WITHIN_S,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"there is no Chromium: {done.stderr.strip()[-300:]}")
    return shutil.which("chromium") or ""


# For one module: while Playwright is there, its event loop is this thread's, and others cannot run.
@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Root, as in CI, has no sandbox to give; only pages of our own are opened.
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Two endpoints, of which one has traffic, a rollout and drift; streams and a job that run."""
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        folder = Path(directory)
        folder.chmod(0o755)
        first = write_version(folder / "first" / "model.py")
        second = write_version(folder / "second" / "model.py")
        system = System(folder / "home")
        try:
            watched = endpoint(first, name="fraud", replicas=2, drift={})
            spec = {
                "version": 1,
                "endpoints": [watched, endpoint(first, name="churn")],
                "streams": [stream("payments", "in"), stream("clicks", "clicked", paused=True)],
                "jobs": [job("nightly", first, folder), job("weekly", first, folder)],
            }
            system.start(spec=spec, console=CONSOLE)
            with write_log(system.home / "streams" / "demo"):
                yield from _with_rollout(system, folder, second)
        finally:
            system.close()


def _with_rollout(system: System, folder: Path, second: Path) -> Iterator[Site]:
    system.wait_ready()
    set_reference(folder / "train.csv", str(system.home))
    begun, _ = system.post("/api/v1/jobs/nightly/run")
    assert begun == 201
    Rollout(system, "fraud").start(
        second, canary({"weight": 20, "until": "approval"}, metrics=_TOLERANT)
    )
    with callers(system, rate=60, name="fraud").flowing():
        Rollout(system, "fraud").wait_for(lambda status: status["verdict"] is not None)
        yield Site(url=system.where().admin_url, token=system.token(), system=system)


def stream(name: str, topic: str, **more: object) -> dict[str, Any]:
    return {
        "name": name,
        "endpoint": "churn",
        "source": {"broker": "log:demo", "topics": [topic]},
        "sink": {"topic": f"{name}-scores"},
        **more,
    }


def job(name: str, model: Path, folder: Path) -> dict[str, Any]:
    return {
        "name": name,
        "model": str(model),
        "allow_code": True,
        "input": str(folder / "train.csv"),
        "output": str(folder / "scored" / "{run_id}"),
        "columns": {"x": ["a", "b"]},
        "schedule": {"cron": "0 6 * * *", "late_after_s": 7200.0},
    }


@contextlib.contextmanager
def write_log(folder: Path) -> Iterator[None]:
    """Twenty records twice a second, one of which is no record that the model can answer."""
    broker, over = LogBroker(folder), threading.Event()
    broker.create_topic("in", partitions=2)
    broker.create_topic("clicked")

    def write() -> None:
        chance = np.random.default_rng(11)
        while not over.wait(0.5):
            rows = [json.dumps({"x": row}).encode() for row in chance.random((20, 2)).tolist()]
            records = [
                NewRecord(topic=topic, key=None, value=value)
                for topic in ("in", "clicked")
                for value in (*rows[1:], b'{"x": "<b>no numbers</b>"}')
            ]
            broker.send(records)

    writing = threading.Thread(target=write, name="write-log")
    writing.start()
    try:
        yield
    finally:
        over.set()
        writing.join()
        broker.close()


def set_reference(path: Path, home: str) -> None:
    """Say that `fraud` was trained on other numbers than it gets: all of them were above 2."""
    data = np.random.default_rng(7).uniform(2.0, 3.0, size=(2000, 2))
    np.savetxt(path, data, fmt="%.5f", delimiter=",", header="a,b", comments="")
    assert main(["drift", "reference", "set", "fraud", "-i", str(path), "--home", home]) == 0


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    """A page of somebody who is logged in, and no script of which fails."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    opened = context.new_page()
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    site.log_in(opened)
    yield opened
    context.close()
    assert not faults
