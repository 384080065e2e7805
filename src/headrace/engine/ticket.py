"""Ticket of one request in the engine: the request, its times, and the receiver of its outcome."""

import math
from enum import IntEnum

from mypy_extensions import mypyc_attr

from headrace.core import HeadraceError, InferRequest, InferResponse

Outcome = InferResponse | HeadraceError


class TicketState(IntEnum):
    """State of a ticket; it never moves backward."""

    NEW = 0
    WAITING = 1
    RUNNING = 2
    DONE = 3


@mypyc_attr(allow_interpreted_subclasses=True)  # where mypyc compiles it
class Ticket:
    """One request inside the engine.

    Subclass it to receive the outcome.

    A method call instead of a future: on the request path a future and its callback cost as much as
    parsing the request.

    `deadline` is monotonic time, infinity for none. `length` is the product of the request's
    variable dimensions; `group` is what must be equal for two requests to share a batch.
    """

    __slots__ = (
        "deadline",
        "floor",
        "group",
        "length",
        "level",
        "queued_at",
        "received_at",
        "request",
        "rows",
        "slo_s",
        "state",
    )

    request: InferRequest
    rows: int
    received_at: float
    queued_at: float
    deadline: float
    level: int
    """Priority level of the request."""
    floor: int
    """The highest priority level that its caller may have, 0 for any."""
    slo_s: float
    """Target response time; a request that would wait longer behind higher levels is refused."""
    length: int
    group: tuple[tuple[int, ...], ...] | None
    state: TicketState

    def __init__(self, received_at: float = 0.0) -> None:
        self.received_at = received_at
        self.queued_at = received_at
        self.deadline = self.slo_s = math.inf
        self.floor = 0
        self.length = 1
        self.group = None
        self.state = TicketState.NEW

    @property
    def identity(self) -> tuple[str, str]:
        """Return the label of this request's id and the id; empty if it has none."""
        return "", ""

    def complete(self, outcome: Outcome) -> None:
        """Receive the response or the error; the engine calls this once, on the event loop."""
        raise NotImplementedError
