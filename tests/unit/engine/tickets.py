"""Tickets that remember their outcome."""

import math

import numpy as np

from headrace.core import InferRequest
from headrace.engine import Outcome, Ticket
from headrace.engine.queue import level_of


class Recorded(Ticket):
    """A ticket that keeps what it was completed with."""

    __slots__ = ("outcomes",)

    def __init__(self, request: InferRequest, *, received_at: float = 0.0) -> None:
        super().__init__(received_at=received_at)
        self.request = request
        self.rows = request.rows
        self.level = level_of(request.priority)
        self.outcomes: list[Outcome] = []

    def complete(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


def a_ticket(
    *,
    rows: int = 1,
    value: float = 0.0,
    priority: int = 0,
    deadline: float = math.inf,
    queued_at: float = 0.0,
    length: int = 1,
    group: tuple[tuple[int, ...], ...] | None = None,
    name: str = "x",
    floor: int = 0,
    slo_s: float = math.inf,
) -> Recorded:
    inputs = {name: np.full((rows, 2), value, dtype=np.float32)}
    ticket = Recorded(
        InferRequest(model_name="m", inputs=inputs, rows=rows, priority=priority),
        received_at=queued_at,
    )
    ticket.queued_at = queued_at
    ticket.deadline = deadline
    ticket.floor = floor
    ticket.slo_s = slo_s
    ticket.length = length
    ticket.group = group
    return ticket
