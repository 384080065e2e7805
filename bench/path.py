"""What a small request takes of us: its way through the replica, without sockets and their kernel.

`python -m bench.path` prints microseconds per request, repeatable to two hundredths where windows
of requests/s differ by a tenth; with compiled modules after `make wheel`, by PYTHONPATH=build/site.
Batches of 32 rows: 32 connections hand over a request each, the batch runs, all are answered.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import uvloop

from bench.payloads import json_payload
from bench.peers import models
from headrace.core import ReplicaSettings
from headrace.engine import engine
from headrace.observe import ModelStatistics
from headrace.scoring.loading import load
from headrace.serving.application import Application
from headrace.serving.connection import Connection
from headrace.serving.server import HttpServer
from headrace.serving.state import ReplicaState

CONNECTIONS: Final = 32
BATCHES: Final = 64
"""Timed together."""
_FIRST: Final = 0.25
"""This share of the rounds is for caches to fill."""


class Sink(asyncio.Transport):
    """Counts the answers."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take an answer."""
        self.answers += bytes(data[:12]) == b"HTTP/1.1 200"


class Figures(msgspec.Struct, kw_only=True):
    """Microseconds per request: of the quickest round, and of the middle one."""

    model: str
    compiled: bool
    least_us: float
    median_us: float


async def measure(model: models.Model, rounds: int) -> Figures:
    """Answer `rounds` times `BATCHES` times `CONNECTIONS` requests.

    Raises:
        RuntimeError: One was not answered with 200.
    """
    settings = ReplicaSettings(model_name=model.name, model_version="1", path=str(model.path))
    statistic = ModelStatistics(name=model.name, version="1")
    state = ReplicaState(settings=settings, statistics=statistic)
    application = Application(state, has_repository=False)
    server = HttpServer(application, settings)
    loaded = load(settings)
    running = state.serve(loaded)
    application.model_loaded()
    sinks = [Sink() for _ in range(CONNECTIONS)]
    connections = [Connection(server) for _ in sinks]
    for connection, sink in zip(connections, sinks, strict=True):
        connection.connection_made(sink)
    requests = [json_payload(model.name, row).http() for row in model.rows]
    took_us = []
    for number in range(rounds):
        sent = [
            [requests[(7 * at + turn + number) % len(requests)] for at in range(CONNECTIONS)]
            for turn in range(BATCHES)
        ]
        began = time.perf_counter()
        for batch in sent:
            for connection, raw in zip(connections, batch, strict=True):
                connection.data_received(raw)
            while running.in_flight:  # noqa: ASYNC110  # turns of the loop, not time
                await asyncio.sleep(0)
        took_us.append((time.perf_counter() - began) / (BATCHES * CONNECTIONS) * 1e6)
    if (answers := sum(sink.answers for sink in sinks)) != rounds * BATCHES * CONNECTIONS:
        msg = f"of {rounds * BATCHES * CONNECTIONS} requests {answers} were answered with 200"
        raise RuntimeError(msg)
    loaded.model.close()
    warm = took_us[int(rounds * _FIRST) :]
    return Figures(
        model=model.name,
        compiled=not str(engine.__file__).endswith(".py"),
        least_us=min(warm),
        median_us=statistics.median(warm),
    )


def main(argv: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.path", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["mlp", "gbdt"], choices=models.NAMES)
    parser.add_argument("--rounds", type=int, default=200, help="of 2,048 requests each")
    parser.add_argument("--json", action="store_true")
    chosen: Any = parser.parse_args(argv)
    for name in chosen.models:
        model = models.load(name, Path(__file__).with_name("models"))
        figures = uvloop.run(measure(model, max(chosen.rounds, 1)))
        if chosen.json:
            print(msgspec.json.encode(figures).decode())
            continue
        how = "compiled" if figures.compiled else "interpreted"
        print(f"{name}, {how}: {figures.median_us:.2f} us, least {figures.least_us:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
