"""What Headrace promises without a peer: the floor, noisy neighbours, many models in one pool."""

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench import processes, systems
from bench.load import arrivals, closed
from bench.payloads import Payload, json_payload, write_payloads
from bench.peers import running
from bench.peers.models import ENCODERS, Model
from bench.peers.pair import MANY, Pair, Task, closed_arm, warm_up
from bench.peers.rows import Row
from bench.peers.suites import goodput, opened, saturation
from bench.windows import Arm, Figures

ModelOf = Callable[[str], Model]
"""A model by its name."""

ALONE_SUITE: Final = "bare"
BARE_LOAD: Final = "one row after the other, in process"
SINGLE: Final = ("mlp", "gbdt", "busy", "resnet")
"""Models with one input."""
FLOOR: Final = "floor"
FLOOR_LOAD: Final = goodput.LOAD
BARE: Final = {
    "bare, one by one": "one",
    "bare, sorted, 4 a batch": "sorted:4",
    "bare, sorted, 8 a batch": "sorted:8",
}
NEIGHBOUR: Final = "neighbour"
QUIET: Final = "alone"
LOADING: Final = "while a large model loads"
NEIGHBOUR_RATE: Final = 500.0
LOAD_AT_S: Final = 0.5
MANY_SUITE: Final = "many"
ONE: Final = "one encoder"
ROUND_ROBIN: Final = f"{ENCODERS} encoders, in turn"
MANY_LOAD: Final = "JSON, 1 connection"
POOL: Final = "pool"
LOADED_S: Final = 180.0
"""Every model of a pool is tried when it is applied."""


def bare(task: Task, model_of: ModelOf) -> Sequence[Row]:
    """What the models cost without any server: how much of a figure is the server's."""
    rows: list[Row] = []
    for name in SINGLE:
        single = partial(_bare_single, task, model_of(name))
        arm = Arm(name="bare ONNX Runtime", measure=single)
        rows += task.compare(ALONE_SUITE, name, BARE_LOAD, [arm], rounds=task.plan.rounds)
    return rows


def _bare_single(task: Task, model: Model) -> Figures:
    seconds = task.plan.seconds
    argv = [sys.executable, "-m", "bench.bare", "single", str(model.path)]
    return closed.run_tool(
        [*argv, "--seconds", str(seconds)],
        cores=task.context.placement.server,
        seconds=seconds,
        read=closed.read_figures,
    )


def floor(task: Task, model_of: ModelOf) -> Sequence[Row]:
    """Goodput of the replica, and of bare ONNX Runtime on the same core with the same arrivals."""
    model, cores = model_of("minilm"), task.context.placement.server
    home = task.context.home / "floor"
    with running.headrace_server(model, cores=cores, home=home) as ours:
        pair = Pair(task=task, model=model, ours=ours, theirs=ours)
        warm_up(pair)
        saturated = closed_arm(pair, ours, pair.closed_load(ours, connections=MANY))
        pair.compare(saturation.SUITE, saturation.JSON, [saturated], rounds=1)
        stored = home / "rows.npz"
        np.savez(stored, *[row["input_ids"][0] for row in model.rows])
        capacity = pair.capacity(ours)
        arms = [
            goodput.arm_of(
                name,
                partial(_replay, task, model, stored, way),
                capacity=capacity,
                plan=task.plan,
            )
            for name, way in BARE.items()
        ]
        return goodput.compare(pair, FLOOR, [goodput.arm(pair, ours), *arms])


def _replay(task: Task, model: Model, rows: Path, way: str, rate: float, *, seed: int) -> Figures:
    seconds = goodput.WINDOWS * task.plan.seconds
    argv = [sys.executable, "-m", "bench.bare", "replay", str(model.path), str(rows)]
    argv += ["--way", way, "--rate", f"{rate:.3f}", "--seconds", f"{seconds:g}"]
    argv += ["--deadline", f"{opened.DEADLINE_S:g}", "--seed", str(seed)]
    figures = closed.run_tool(
        argv,
        cores=task.context.placement.server,
        seconds=seconds,
        read=partial(arrivals.read, may_fail=False),
    )
    return opened.counted(figures, rate)


def neighbour(task: Task, model_of: ModelOf) -> Sequence[Row]:
    """p99 of the MLP in a pool, while the pool loads MiniLM, each time under a new name."""
    small, large = model_of("mlp"), model_of("minilm")
    rounds = task.plan.rounds
    names = [f"large-{number}" for number in range(rounds)]
    spec = _pool({small.name: small.path, **dict.fromkeys(names, large.path)})
    probe = json_payload(small.name, small.rows[0])
    home = task.context.home / "neighbour"
    home.mkdir()
    with systems.up_spec(
        spec, probe=probe, cores=task.context.placement.all, home=home, within_s=LOADED_S
    ) as system:
        fresh = iter(names)
        send = partial(_send, task, system.http, small)

        def loading() -> Figures:
            wake = json_payload(next(fresh), large.rows[0])
            timer = threading.Timer(LOAD_AT_S, systems.answers, (system.http, wake))
            timer.start()
            figures = send()
            timer.join()
            _wake(system.http, wake)
            return figures

        arms = [Arm(name=QUIET, measure=send), Arm(name=LOADING, measure=loading)]
        load = f"{NEIGHBOUR_RATE:g} requests/s to the small one"
        # Each name is loaded once, so a noisy window cannot be taken again.
        return task.compare(NEIGHBOUR, small.name, load, arms, rounds=rounds, again=False)


def _send(task: Task, port: int, model: Model) -> Figures:
    payloads = [json_payload(model.name, row) for row in model.rows]
    load = arrivals.OpenLoad(
        index=write_payloads(payloads, task.context.home / "neighbour-payloads"),
        rate=NEIGHBOUR_RATE,
        seconds=2 * task.plan.seconds,
        deadline_s=0.1,
        cores=task.context.placement.load,
    )
    return arrivals.measure(port, load)


def many(task: Task, model_of: ModelOf) -> Sequence[Row]:
    """One connection asks one encoder, or eight in turn, all in one process on one core."""
    model = model_of("minilm")
    names = [f"encoder-{number}" for number in range(ENCODERS)]
    home = task.context.home / "many"
    home.mkdir()
    rows = model.rows[: 8 * ENCODERS]
    one = [json_payload(names[0], row) for row in rows]
    turns = [json_payload(names[at % ENCODERS], row) for at, row in enumerate(rows)]
    with systems.up_spec(
        _pool(dict.fromkeys(names, model.path)),
        probe=one[0],
        cores=task.context.placement.server,
        home=home,
        within_s=LOADED_S,
    ) as system:
        # The first request of a model waits until it is loaded.
        for payload in turns[:ENCODERS]:
            _wake(system.http, payload)
        arms = []
        for name, payloads in ((ONE, one), (ROUND_ROBIN, turns)):
            load = task.context.load(
                payloads, name=name, connections=1, seconds=2 * task.plan.seconds
            )
            arms.append(Arm(name=name, measure=partial(closed.measure, system.http, load)))
        return task.compare(MANY_SUITE, model.name, MANY_LOAD, arms, rounds=task.plan.rounds)


def _wake(port: int, payload: Payload) -> None:
    """Wait until a model of a pool is loaded and answers."""
    deadline = time.monotonic() + LOADED_S
    while not systems.answers(port, payload):
        if time.monotonic() > deadline:
            msg = f"{payload.path} gave no answer within {LOADED_S:g} s"
            raise processes.StartError(msg)


def _pool(paths: Mapping[str, Path]) -> Mapping[str, Any]:
    """A spec in which one process hosts all models."""
    endpoints = [
        {"name": name, "model": str(path.resolve()), "pool": POOL} for name, path in paths.items()
    ]
    pool = {"name": POOL, "memory_bytes": 8_000_000_000, "load_timeout_s": 30}
    return {"version": 1, "pools": [pool], "endpoints": endpoints}


ALONE: Final[Mapping[str, Callable[[Task, ModelOf], Sequence[Row]]]] = {
    ALONE_SUITE: bare,
    FLOOR: floor,
    NEIGHBOUR: neighbour,
    MANY_SUITE: many,
}
