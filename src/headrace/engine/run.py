"""Run of one batch: join, run, split. It blocks, so it may run in any thread."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, cast

from headrace.core import (
    DeadlineExceededError,
    FeaturesUnavailableError,
    HeadraceError,
    RequestedOutput,
    RequestRows,
    RuntimeFailedError,
    Tensors,
    UnavailableError,
)
from headrace.core.encoders import TOKEN_COUNT
from headrace.engine.collate import PaddingPlan, join, split
from headrace.engine.ticket import Ticket
from headrace.runtimes import DeadlineModel, Model

Result = Tensors | RequestRows | HeadraceError
_NOBODYS: Final = (FeaturesUnavailableError, UnavailableError, DeadlineExceededError)
"""Errors that no row causes: a service that the run waited for failed, and would fail for half of
the rows too.
"""


@dataclass(slots=True, kw_only=True)
class Batch:
    """Tickets that run together, the result of each, and the run's times (monotonic)."""

    tickets: list[Ticket]
    rows: int
    formed_at: float
    length: int = 1
    aside: Callable[[Model], None] | None = None
    """Work that runs instead of `tickets`, which are then empty; must not raise."""
    on_ended: Callable[[], None] | None = None
    """Called on the event loop when `aside` has ended."""
    results: Sequence[Result] = ()
    joined_at: float = 0.0
    computed_at: float = 0.0
    split_at: float = 0.0
    executions: int = field(default=0)


def run_batch(model: Model, batch: Batch, plan: PaddingPlan | None) -> None:
    """Run `batch`; set its times and one result per ticket.

    If the model refuses or fails a batch of several requests, its halves are tried, so that a bad
    row fails only its own request.
    """
    tickets = batch.tickets
    try:
        inputs, batch.length = join(tickets, plan)
        output_names = _wanted_outputs(model, tickets)
        batch.joined_at = time.monotonic()
        batch.executions += 1
        outputs = run_model(model, inputs, output_names, tickets)
        batch.computed_at = time.monotonic()
        batch.results = split(outputs, tickets, plan=plan, padded_to=batch.length)
    except Exception as error:  # noqa: BLE001  # a plug-in call: any error is its failure
        batch.joined_at = batch.joined_at or batch.formed_at
        batch.computed_at = time.monotonic()
        if len(tickets) > 1 and not isinstance(error, _NOBODYS):
            batch.results = _apart(model, batch, plan)
        else:
            batch.results = [as_failure(error)] * len(tickets)
    batch.split_at = time.monotonic()


def run_model(
    model: Model, inputs: Tensors, output_names: Sequence[str] | None, tickets: Sequence[Ticket]
) -> Tensors:
    """Return the model's outputs for the inputs of `tickets`, until their first deadline."""
    if not getattr(model, "takes_deadline", False):
        return model.run(inputs, output_names)
    until = min(ticket.deadline for ticket in tickets)
    return cast("DeadlineModel", model).run(inputs, output_names, deadline=until)


def _apart(model: Model, batch: Batch, plan: PaddingPlan | None) -> list[Result]:
    """Return the results of the two halves of a batch that failed as a whole."""
    results: list[Result] = []
    middle = len(batch.tickets) // 2
    for tickets in (batch.tickets[:middle], batch.tickets[middle:]):
        half = Batch(
            tickets=tickets,
            rows=sum(ticket.rows for ticket in tickets),
            formed_at=batch.formed_at,
        )
        run_batch(model, half, plan)
        results += half.results
        batch.executions += half.executions
    return results


def as_failure(error: Exception) -> HeadraceError:
    """Return `error` if it is a HeadraceError; otherwise one that shows what the caller may see."""
    if isinstance(error, HeadraceError):
        return error
    failure = RuntimeFailedError(f"the model failed on this request ({type(error).__name__})")
    failure.__cause__ = error
    return failure


def _wanted_outputs(model: Model, tickets: Sequence[Ticket]) -> tuple[str, ...] | None:
    """Return the outputs that any ticket requested; None if a ticket requested all of them.

    "All" excludes `TOKEN_COUNT`: if another ticket requested that, all outputs are named.
    """
    counts_tokens = getattr(model, "counts_tokens", False)
    names: dict[str, None] = {}
    wants_all = False
    for ticket in tickets:
        outputs = ticket.request.outputs
        if not outputs:
            if not counts_tokens:
                return None
            wants_all = True
        for output in outputs:
            names[output.name] = None
    if not wants_all:
        return tuple(names)
    if TOKEN_COUNT not in names:
        return None
    every = tuple(RequestedOutput(name=spec.name) for spec in model.signature.outputs)
    for ticket in tickets:
        ticket.request.outputs = ticket.request.outputs or every
    return (*(output.name for output in every), TOKEN_COUNT)
