"""gRPC load by `h2load`: it speaks HTTP/2 and knows nothing of gRPC, which makes it cheap.

It counts HTTP statuses only, and a gRPC error is an HTTP 200. So the size of the answers is checked
too: an error has no message. Before, the same request goes through a real gRPC client.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.load.closed import LoadError, run_tool
from bench.payloads import Payload

_FINISHED: Final = re.compile(r"finished in ([\d.]+)(ms|s|us), ([\d.]+) req/s")
_REQUESTS: Final = re.compile(r"requests: \d+ total, .* (\d+) done, (\d+) succeeded, (\d+) failed")
_DATA: Final = re.compile(r"\((\d+)\) data")
_MEAN: Final = re.compile(r"time for request:\s+\S+\s+\S+\s+([\d.]+)(us|ms|s)")
_SECONDS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class H2Load:
    """How hard to push: `connections` times `streams` requests are in flight."""

    payload: Payload
    connections: int
    streams: int
    seconds: float
    cores: frozenset[int]
    folder: Path
    answer_bytes: int


def is_installed() -> bool:
    """Whether `h2load` (Debian: nghttp2-client) is there."""
    return shutil.which("h2load") is not None


def measure(port: int, load: H2Load) -> Mapping[str, float]:
    """Run once: `rps`, `mean_us`, `load_cores`.

    Raises:
        LoadError: An answer failed, or had not the size of a good one.
    """
    body = load.folder / "grpc.body"
    body.write_bytes(load.payload.body)
    argv = [
        "h2load",
        "-t1",
        f"-c{load.connections}",
        f"-m{load.streams}",
        f"-D{round(load.seconds * 1000)}ms",
    ]
    argv += ["-d", str(body)]
    for name, value in load.payload.headers.items():
        argv += ["-H", f"{name}: {value}"]
    argv.append(f"http://127.0.0.1:{port}{load.payload.path}")
    return run_tool(
        argv,
        cores=load.cores,
        seconds=load.seconds,
        read=lambda text: read(text, load.answer_bytes),
    )


def read(output: str, answer_bytes: int) -> Mapping[str, float]:
    """The figures in what `h2load` prints, if every answer was `answer_bytes` long.

    Raises:
        LoadError: Requests failed, or answers were shorter or longer.
    """
    finished, requests = _FINISHED.search(output), _REQUESTS.search(output)
    data, mean = _DATA.search(output), _MEAN.search(output)
    if not (finished and requests and data and mean):
        msg = f"h2load printed something else than expected: {output}"
        raise LoadError(msg)
    done, good, failed = (int(text) for text in requests.groups())
    size = int(data[1]) / max(good, 1)
    # Some frames are still on their way when the time is up.
    if failed or not good or abs(size - answer_bytes) > 0.02 * answer_bytes:
        msg = f"{done} done, {failed} failed; {size:.1f} bytes an answer, not {answer_bytes}"
        raise LoadError(msg)
    return {
        "rps": float(finished[3]),
        "requests": good,
        "wall_s": float(finished[1]) * _SECONDS[finished[2]],
        "mean_us": float(mean[1]) * _SECONDS[mean[2]] * 1e6,
    }
