"""Everything that is asked about one peer, in steps that fail and resume one by one."""

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from bench import processes
from bench.context import Context
from bench.load.closed import LoadError
from bench.peers import batches, models, store
from bench.peers.catalog import PEERS, Peer
from bench.peers.environments import REQUIREMENTS, InstallError, ensure, pinned
from bench.peers.models import Model
from bench.peers.pair import Plan, Task, pair_up
from bench.peers.rows import Row, merged
from bench.peers.running import HEADRACE
from bench.peers.store import Part
from bench.peers.suites import PAIRED, own, saturation
from bench.peers.suites.alone import ALONE
from bench.verify import WrongAnswerError

EXPECTED: Final = (LoadError, WrongAnswerError, processes.StartError)
"""What a peer may do to us; everything else is told with where it happened."""
SMALL: Final = "mlp"
MEASURED_WITH: Final = {own.GATEWAY: (own.GRPC,)}
"""Suites that a step measures beside the one it is named for."""

Step = tuple[str, Callable[[], object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is measured, and where it is stored. `resume`: keep what an earlier run measured."""

    suites: frozenset[str]
    models: frozenset[str]
    out: Path
    resume: bool
    report: Callable[[Sequence[Row]], None]

    def paired(self, model: str) -> list[str]:
        """The suites that are asked with a model; all but one need its capacity."""
        if model not in self.models:
            return []
        names = [
            suite.name for suite in PAIRED if model in suite.asks and suite.name in self.suites
        ]
        needs = bool(set(names) - {saturation.SUITE, "image"})
        return [saturation.SUITE, *names] if needs and saturation.SUITE not in names else names


def measure_peer(peer: Peer, context: Context, plan: Plan, choice: Choice) -> Part:
    """Every step of one peer; what failed stands in the part."""
    fresh = Part(name=peer.name, title=peer.title, is_quick=plan.is_quick)
    try:
        environment = ensure(peer.requirements)
    except (InstallError, OSError) as error:
        fresh.skipped = f"cannot be installed: {error}"
        store.keep(fresh, choice.out)
        return fresh
    part = store.resume(choice.out, fresh) if choice.resume else fresh
    names = pinned((REQUIREMENTS / f"{peer.requirements}.txt").read_text())
    versions = environment.versions()
    part.versions = {name: versions[name] for name in names if name in versions}
    task = Task(context=context, plan=plan, peer=peer, seen=list(part.rows))
    return take(part, task, _steps(part, task, choice), choice)


def measure_alone(context: Context, plan: Plan, choice: Choice) -> Part:
    """What needs no peer."""
    fresh = Part(name=HEADRACE, title="Headrace", is_quick=plan.is_quick)
    part = store.resume(choice.out, fresh) if choice.resume else fresh
    # No peer is started; the task wants a name for what it measures.
    task = Task(context=context, plan=plan, peer=PEERS["fastapi"], seen=list(part.rows))
    steps = [
        (name, partial(ask, task, partial(_load, task)))
        for name, ask in ALONE.items()
        if name in choice.suites
    ]
    return take(part, task, steps, choice)


def _load(task: Task, name: str) -> Model:
    model = models.load(name, task.context.cache)
    return replace(model, max_batch=task.plan.max_batch or model.max_batch)


def _steps(part: Part, task: Task, choice: Choice) -> list[Step]:
    steps: list[Step] = [
        (name, partial(_own, ask, task))
        for name, ask in own.OWN.items()
        if choice.suites & {name, *MEASURED_WITH.get(name, ())} and SMALL in choice.models
    ]
    asked = {model: choice.paired(model) for model in models.NAMES}
    pairs = [
        (f"{model}: {', '.join(names)}", partial(_paired, part, task, model, names))
        for model, names in asked.items()
        if names
    ]
    return [*steps, *pairs]


def _own(ask: Callable[[Task, Model], Sequence[Row]], task: Task) -> Sequence[Row]:
    return ask(task, _load(task, SMALL))


def _paired(part: Part, task: Task, name: str, names: Sequence[str]) -> None:
    model = _load(task, name)
    if batches.is_tried(task, model):
        model = replace(model, max_batch=batches.best(task, model))
        part.batches[name] = model.max_batch
    with pair_up(task, model) as pair:
        for suite in PAIRED:
            if suite.name in names and name in suite.asks:
                suite.asks[name](pair)


def take(part: Part, task: Task, steps: Sequence[Step], choice: Choice) -> Part:
    """Run the steps that were not done yet, and store after each."""
    for name, step in steps:
        if name in part.done:
            print(f"-- {part.name}, {name}: measured by an earlier run", flush=True)
            continue
        print(f"-- {part.name}, {name}", flush=True)
        began, known = time.monotonic(), len(task.seen)
        try:
            step()
            part.done.append(name)
        except EXPECTED as error:
            part.failures[name] = f"{type(error).__name__}: {error}"
            print(f"FAILED {part.failures[name]}", flush=True)
        except Exception as error:  # noqa: BLE001  # one step is lost, and not a run of an hour
            part.failures[name] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        finally:
            if left := processes.stop_leftovers():
                print(f"note  had to kill: {', '.join(left)}", flush=True)
            # What came before a failure counts.
            part.rows = merged(part.rows, task.seen[known:])
            took_s = time.monotonic() - began
            part.seconds += took_s
            part.step_s[name] = took_s
            store.keep(part, choice.out)
        choice.report(task.seen[known:])
        print(f"took {took_s:.0f} s", flush=True)
    return part
