"""With which of a few batch sizes does a peer answer most?

Where a batch costs less than its rows, it depends on the processor and on the server.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from bench import processes
from bench.load import closed
from bench.load.closed import LoadError
from bench.peers import running
from bench.peers.models import Model
from bench.peers.pair import MANY, Task
from bench.peers.running import Server
from bench.verify import WrongAnswerError
from bench.windows import Arm, Figures, quiet_window

Rate = Callable[[int], float]
"""Requests/s with batches of up to so many rows."""

FAILED: Final = (LoadError, WrongAnswerError, processes.StartError)
"""What a batch size may do to a peer."""
WINDOWS: Final = 2.0
"""The trial's window is so many times as long as others."""


def is_tried(task: Task, model: Model) -> bool:
    """Whether sizes are tried: no size was asked for, and the peer can batch the model's rows."""
    plan = task.plan
    return bool(model.tried) and task.peer.pads and not (plan.is_quick or plan.max_batch)


def best(task: Task, model: Model) -> int:
    """The size with which the peer answers most.

    Raises:
        LoadError, WrongAnswerError, StartError: It serves the model with none.
    """
    size = better(model.tried, lambda size: _rate(task, replace(model, max_batch=size)))
    print(f"note  {task.peer.name} is measured with batches of up to {size}", flush=True)
    return size


def better(sizes: Sequence[int], rate: Rate) -> int:
    """The size with the highest rate, of those with which it works.

    Raises:
        LoadError, WrongAnswerError, StartError: It works with none; why the last did not.
    """
    rates: dict[int, float] = {}
    for size in sizes:
        try:
            rates[size] = rate(size)
            print(f"note  batches of up to {size}: {rates[size]:.0f} requests/s", flush=True)
        except FAILED as error:
            print(f"note  batches of up to {size}: {error}", flush=True)
            if size == sizes[-1] and not rates:
                raise
    return max(rates, key=lambda size: rates[size])


def _rate(task: Task, model: Model) -> float:
    """Requests/s with all connections busy, nobody else on the core."""
    cores = task.context.placement.server
    home = task.context.home / f"{task.peer.name}-{model.name}-{model.max_batch}"
    with running.peer_server(task.peer, model, cores=cores, home=home) as server:
        _answered(task, model, server, seconds=1.0)
        seconds = WINDOWS * task.plan.seconds
        arm = Arm(name=server.name, measure=lambda: _answered(task, model, server, seconds=seconds))
        return quiet_window(arm).figures["rps"]


def _answered(task: Task, model: Model, server: Server, *, seconds: float) -> Figures:
    load = task.context.load(
        server.payloads(model),
        name=f"{server.name}-{model.name}-trial",
        connections=MANY,
        seconds=seconds,
    )
    return closed.measure(server.http, load, read=closed.read_tolerantly)
