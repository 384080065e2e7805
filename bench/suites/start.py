"""How soon does a model answer, and what does it weigh while nobody asks?

`headrace up` on the MLP in a fresh home, on every core; a caller knocks at the gateway every 10 ms.
Files are in the page cache, as on any machine that ran Python a minute ago.
"""

import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from bench import processes, systems
from bench.context import Context, one_row
from bench.payloads import json_payload
from bench.results import SuiteResult, Table, Target, cell
from bench.systems import Ports, headrace
from bench.windows import Arm, Rounds, figure, interleave

MODEL: Final = "mlp"
UP: Final = "headrace up"
LIMIT_S: Final = 60.0
KNOCK_S: Final = 0.01
SETTLE_S: Final = 1.0
MB: Final = 1_000_000


def run(context: Context) -> SuiteResult:
    """Start and stop a few times."""
    homes = iter(context.home / f"start-{number}" for number in range(100))
    arm = Arm(name=UP, measure=lambda: _start_once(context, next(homes)))
    rounds = interleave([arm], rounds=3 if context.quick else 7)
    return SuiteResult(name="start", table=_table(rounds), targets=_targets(rounds), rounds=rounds)


def _start_once(context: Context, home: Path) -> Mapping[str, float]:
    home.mkdir()
    ports = Ports.free()
    model = context.models[MODEL]
    log = home / "up.log"
    argv = headrace("up", str(model), *ports.flags(home / "state"), "--detach")
    started = time.monotonic()
    process = processes.start(argv, part=UP, cores=context.placement.all, log=log)
    try:
        first_answer_s = _knock(ports.http, started, process, log)
        if process.wait(LIMIT_S):
            msg = f"headrace up ended with {process.returncode}:\n{processes.tail(log)}"
            raise processes.StartError(msg)
        ready_s = time.monotonic() - started
        time.sleep(SETTLE_S)
        return {"first_answer_s": first_answer_s, "ready_s": ready_s, **_weigh(ports, home)}
    finally:
        _down(home / "state", process)


def _knock(port: int, started: float, process: subprocess.Popen[bytes], log: Path) -> float:
    payload = json_payload(MODEL, one_row())
    while not processes.answers(port, payload.path, method="POST", body=payload.body):
        if process.poll() or time.monotonic() - started > LIMIT_S:
            msg = f"no answer after {time.monotonic() - started:.1f} s:\n{processes.tail(log)}"
            raise processes.StartError(msg)
        time.sleep(KNOCK_S)
    return time.monotonic() - started


def _weigh(ports: Ports, home: Path) -> dict[str, float]:
    status: Mapping[str, Any] = systems.fetch_status(ports.admin, home / "state")
    (replica,) = systems.replica_pids(status)
    gateway = systems.gateway_pid(status)
    return {
        "replica_mb": processes.rss_bytes(replica) / MB,
        "gateway_mb": processes.rss_bytes(gateway) / MB,
    }


def _down(state: Path, process: subprocess.Popen[bytes]) -> None:
    subprocess.run(
        headrace("down", "--home", str(state)),
        env=processes.environment(UP),
        capture_output=True,
        check=False,
        timeout=LIMIT_S,
    )
    processes.stop(process)


def _table(rounds: Rounds) -> Table:
    return Table(
        headings=["what", "median [lowest to highest]"],
        rows=[
            ["command to first answer, s", cell(figure(rounds, UP, "first_answer_s"), 2)],
            ["command to its return, s", cell(figure(rounds, UP, "ready_s"), 2)],
            ["replica idle, MB resident", cell(figure(rounds, UP, "replica_mb"), 1)],
            ["Envoy idle, MB resident", cell(figure(rounds, UP, "gateway_mb"), 1)],
        ],
    )


def _targets(rounds: Rounds) -> list[Target]:
    return [
        Target(
            text="first answer after the command",
            value=figure(rounds, UP, "first_answer_s").median,
            limit=2.5,
            unit="s",
            is_ceiling=True,
        ),
        Target(
            text="idle replica",
            value=figure(rounds, UP, "replica_mb").median,
            limit=130,
            unit="MB",
            is_ceiling=True,
        ),
    ]
