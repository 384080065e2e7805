"""Closed loop: N connections, each sends its next request when the last was answered.

`wrk` where it is installed; else (or on a Unix socket) `bench.load.client`, which costs more of the
load's core and is then often the limit: its processor share stands in the result.
"""

import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import cpu

LUA: Final = Path(__file__).with_name("post.lua")
GRACE_S: Final = 30.0


class LoadError(RuntimeError):
    """A load tool failed, or the server refused or broke requests that it had to answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How hard to push.

    `index` lists the payloads (`bench.payloads.write_payloads`); they are sent in turn.
    """

    index: Path
    connections: int
    seconds: float
    cores: frozenset[int]


def tool() -> str:
    """Which program sends the requests."""
    return "wrk" if shutil.which("wrk") else "bench.load.client"


def measure(
    port: int, load: Load, *, read: Callable[[str], Mapping[str, float]] | None = None
) -> Mapping[str, float]:
    """Run once: `rps`, `p50_us`, `p99_us`, `load_cores`.

    Args:
        read: Reads what the tool prints; by default `read_json_line`.

    Raises:
        LoadError: An answer was not 200, or a connection broke.
    """
    argv = _wrk(port, load) if tool() == "wrk" else client_argv(f"127.0.0.1:{port}", load)
    read = read or read_json_line
    return run_tool(argv, cores=load.cores, seconds=load.seconds, read=read)


def client_argv(address: str, load: Load, *, requests: int | None = None) -> list[str]:
    """Argument vector of our own client.

    Args:
        address: `host:port` or `unix:/path`.
        requests: Stop after so many; None for time only.
    """
    flags = ["--connections", str(load.connections), "--seconds", str(load.seconds)]
    if requests is not None:
        flags += ["--requests", str(requests)]
    return [sys.executable, "-m", "bench.load.client", address, str(load.index), *flags]


def run_tool(
    argv: list[str],
    *,
    cores: frozenset[int],
    seconds: float,
    read: Callable[[str], Mapping[str, float]],
) -> Mapping[str, float]:
    """Run a load tool on `cores` and read its figures; adds `load_cores`, what it used itself."""
    before, started = _children_s(), time.monotonic()
    with cpu.pinned(set(cores)):
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=seconds + GRACE_S
        )
    used_s, wall_s = _children_s() - before, time.monotonic() - started
    if done.returncode != 0:
        msg = f"{argv[0]} failed with {done.returncode}: {done.stderr or done.stdout}"
        raise LoadError(msg)
    figures = read(done.stdout)
    return {**figures, "load_cores": used_s / wall_s}


def read_json_line(output: str) -> Mapping[str, float]:
    """The figures that `post.lua` and our client print as their last line.

    Raises:
        LoadError: Requests were refused or broke, or none was answered.
    """
    raw = json.loads(output.strip().splitlines()[-1])
    if raw["refused"] or raw["broken"] or not raw["requests"]:
        msg = (
            f"{raw['requests']} requests, of which {raw['refused']} were not answered with success "
            f"and {raw['broken']} broke"
        )
        raise LoadError(msg)
    return {
        "rps": raw["requests"] / raw["wall_s"],
        "requests": raw["requests"],
        "wall_s": raw["wall_s"],
        "p50_us": raw["p50_us"],
        "p99_us": raw["p99_us"],
    }


def read_tolerantly(output: str) -> Mapping[str, float]:
    """The same of a server that may refuse: `rps` counts good answers, `failed_ratio` the rest.

    Latencies are of all answers: the tools keep no others.

    Raises:
        LoadError: No answer was good.
    """
    raw = json.loads(output.strip().splitlines()[-1])
    good = raw["requests"] - raw["refused"]
    if good <= 0:
        msg = f"none of {raw['requests']} requests was answered with success"
        raise LoadError(msg)
    failed_ratio = (raw["refused"] + raw["broken"]) / (raw["requests"] + raw["broken"])
    clean = json.dumps({**raw, "requests": good, "refused": 0, "broken": 0})
    return {**read_json_line(clean), "failed_ratio": failed_ratio}


def read_figures(output: str) -> Mapping[str, float]:
    """The last line of a tool that prints its figures as JSON."""
    figures: Mapping[str, float] = json.loads(output.strip().splitlines()[-1])
    return figures


def _wrk(port: int, load: Load) -> list[str]:
    # wrk takes whole seconds.
    flags = [
        "-t1",
        f"-c{load.connections}",
        f"-d{max(1, round(load.seconds))}s",
        "--timeout",
        "10s",
    ]
    return ["wrk", *flags, "-s", str(LUA), f"http://127.0.0.1:{port}", "--", str(load.index)]


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
