"""Run the open-loop generator from outside, on a core of its own, and read its figures."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.load import closed
from bench.load.closed import LoadError
from bench.load.open_loop import LINGER_S, NO_BURST, Burst

REFUSALS: Final = frozenset({"429", "503", "504"})


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLoad:
    """What is sent when.

    `index` lists the payloads (`bench.payloads.write_payloads`). An answer later than `deadline_s`
    after its intended time is no goodput.
    """

    index: Path
    rate: float
    seconds: float
    deadline_s: float
    cores: frozenset[int]
    seed: int = 1
    burst: Burst = NO_BURST


def measure(port: int, load: OpenLoad, *, may_fail: bool = False) -> Mapping[str, float]:
    """Run once: what `bench.load.open_loop.Outcome` tells, `status_NNN` for each status.

    Args:
        may_fail: Any status will do, and requests may still wait when the tool gives up.

    Raises:
        LoadError: An answer was neither 200 nor a refusal, or a connection broke.
    """
    argv = [sys.executable, "-m", "bench.load.open_loop", f"127.0.0.1:{port}", str(load.index)]
    argv += ["--rate", f"{load.rate:.3f}", "--seconds", f"{load.seconds:g}"]
    argv += ["--deadline", f"{load.deadline_s:g}", "--seed", str(load.seed)]
    argv += ["--burst-factor", f"{load.burst.factor:g}"]
    for start in load.burst.starts:
        argv += ["--burst-at", f"{start:g}"]
    return closed.run_tool(
        argv,
        cores=load.cores,
        seconds=load.seconds + LINGER_S,
        read=partial(read, may_fail=may_fail),
    )


def read(output: str, *, may_fail: bool) -> Mapping[str, float]:
    """The figures in what the generator prints.

    Raises:
        LoadError: As `measure`.
    """
    raw: dict[str, Any] = dict(closed.read_figures(output))
    statuses = raw.pop("statuses")
    unexpected = set(statuses) - {"200", *REFUSALS}
    if (unexpected or raw["broken"]) and not may_fail:
        msg = f"statuses {statuses}, {raw['broken']} broken"
        raise LoadError(msg)
    return {**raw, **{f"status_{status}": count for status, count in statuses.items()}}
