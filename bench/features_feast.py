"""Speed of online reads and joins compared with Feast, in one run, in turns.

`make setup ENV=feast` installs Feast. A round asks Feast and then Headrace for the same entities
and gives one ratio; the median of all rounds is reported. Values must be equal.
"""

import json
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from bench.machine import load_average
from headrace.features import (
    FeatureReader,
    FeatureService,
    FeatureView,
    OnlineStore,
    join_as_of,
    open_online_store,
)
from headrace.features.online_writers import materialize
from tests.contract.redis_servers import running_server

if TYPE_CHECKING:
    from headrace.core import Array

ROOT: Final = Path(__file__).parents[1]
FEAST: Final = ROOT / ".venv-feast" / "bin" / "python"
ROUNDS: Final = 7
READS: Final = 300
JOINS: Final = 5
READ_GOAL: Final = 5.0
JOIN_GOAL: Final = 2.0


class Feast:
    """Feast in its own environment, in another process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def ask(self, *command: object) -> Any:  # noqa: ANN401  # JSON
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if command:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("Feast ended; what it said is above")
        return json.loads(line)


@contextmanager
def running_feast(folder: Path, socket: Path) -> Iterator[Feast]:
    with subprocess.Popen(
        [FEAST, ROOT / "bench/servers/feast_worker.py", folder, socket],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        feast = Feast(process)
        feast.ask()
        yield feast
        process.kill()


def compare(views: Sequence[FeatureView], service: FeatureService, rows: pl.DataFrame) -> None:
    """Print ratios, or how to install Feast."""
    if not FEAST.exists():
        print("Feast is not here to be compared with; `make setup ENV=feast` installs it")
        return
    with (
        tempfile.TemporaryDirectory() as directory,
        running_server("valkey") as server,
    ):
        folder = Path(directory)
        for view in views:
            assert view.source.path is not None
            (folder / f"{view.name}.parquet").symlink_to(view.source.path)
        with running_feast(folder, server.socket) as feast:
            for kind, url in (
                ("sqlite", f"sqlite:///{folder}/ours.db"),
                ("redis", server.url),
            ):
                ours = open_online_store(url, namespace="bench")
                for view in views:
                    materialize(view, ours, until=rows["event_timestamp"].max())  # type: ignore[arg-type]
                theirs = open_online_store(f"feast://{folder / kind}")
                compare_reads(kind, feast, service, ours, READ_GOAL)
                compare_reads(kind, feast, service, theirs, None)
                ours.close()
                theirs.close()
            compare_joins(feast, service, rows, folder)


def compare_reads(
    kind: str, feast: Feast, service: FeatureService, store: OnlineStore, goal: float | None
) -> None:
    what = "our store" if goal else "Feast's store, read by us"
    reader = FeatureReader(service, store)
    pick = random.Random(0)  # noqa: S311  # which entities are asked for
    ratios, p50s, p99s = [], [], []
    for _ in range(ROUNDS):
        ids = [pick.randrange(10_000) for _ in range(READS)]
        answer = feast.ask("read", kind, ids)
        taken = [_seconds(lambda one=one: reader.read({"customer_id": [one]})) for one in ids]
        values = {k: float(v[0]) for k, v in reader.read({"customer_id": ids[-1:]}).columns.items()}
        theirs = {k: v[0] for k, v in answer["values"].items() if k != "customer_id"}
        assert values == theirs
        ratios.append(statistics.median(answer["seconds"]) / statistics.median(taken))
        p50s.append((statistics.median(answer["seconds"]), statistics.median(taken)))
        p99s += taken
    feast_ms, our_ms = (statistics.median(one) * 1000 for one in zip(*p50s, strict=True))
    p99_ms = float(np.quantile(p99s, 0.99)) * 1000
    print(
        f"{kind}: read 1 x 30 features of 3 views, {what}: p50 {our_ms:.3f} ms, "
        f"p99 {p99_ms:.3f} ms; Feast p50 {feast_ms:.3f} ms; ratio {_told(ratios, goal)}"
    )


def compare_joins(feast: Feast, service: FeatureService, rows: pl.DataFrame, folder: Path) -> None:
    rows.write_parquet(folder / "rows.parquet")
    ratios, theirs, ours = [], [], []
    for _ in range(JOINS):
        asked = feast.ask("join", str(folder / "rows.parquet"), str(folder / "joined.parquet"))
        ours.append(_seconds(lambda: join_as_of(rows, service)))
        theirs.append(asked["seconds"])
        ratios.append(theirs[-1] / ours[-1])
    _check_join(join_as_of(rows, service), pl.read_parquet(folder / "joined.parquet"), service)
    print(
        f"join {rows.height:,} rows x 3 views: {statistics.median(ours):.3f} s, "
        f"Feast's duckdb store {statistics.median(theirs):.3f} s; ratio {_told(ratios, JOIN_GOAL)}"
    )


def _check_join(ours: pl.DataFrame, theirs: pl.DataFrame, service: FeatureService) -> None:
    """Equal values for each row; Feast gives them in an order of its own."""
    keys = ["customer_id", "event_timestamp"]
    names = [column.name for column in service.columns]
    tables: list[Array] = []
    for table in (ours, theirs):
        time_us = table["event_timestamp"].dt.epoch("us")
        ordered = table.with_columns(event_timestamp=time_us).select(*keys, *names).sort(keys)
        tables.append(ordered.fill_null(float("nan")).to_numpy())
    assert np.array_equal(tables[0], tables[1], equal_nan=True)


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _told(ratios: Sequence[float], goal: float | None) -> str:
    ratio = statistics.median(ratios)
    told = f"{ratio:.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
    if goal is not None:
        told += f", goal {goal:g} {'met' if ratio >= goal else 'MISSED'}"
    return f"{told}, load average {load_average():.1f}"
