"""A server in memory and a clock that tests turn: conversations without network and time."""

from collections.abc import Callable
from dataclasses import dataclass, field

from headrace.client.conversation import Conversation, ResultT, SendMessage
from headrace.client.http_transport import HttpMessage, HttpReply
from headrace.core import HeadraceError

Answer = HttpReply | HeadraceError


@dataclass
class TurnedClock:
    time_s: float = 1000.0

    def monotonic(self) -> float:
        return self.time_s

    def now(self) -> float:
        return self.time_s


@dataclass
class FakeServer:
    """Answers by `handler`; a pause or `takes_s` per request turns the clock."""

    handler: Callable[[HttpMessage], Answer]
    clock: TurnedClock = field(default_factory=TurnedClock)
    takes_s: float = 0.0
    messages: list[HttpMessage] = field(default_factory=list)
    timeouts: list[float | None] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)

    def drive(self, conversation: Conversation[ResultT]) -> ResultT:
        try:
            step = next(conversation)
            while True:
                if not isinstance(step, SendMessage):
                    self.pauses.append(step.delay_s)
                    self.clock.time_s += step.delay_s
                    step = conversation.send(None)
                    continue
                self.messages.append(step.message)
                self.timeouts.append(step.timeout_s)
                self.clock.time_s += self.takes_s
                answer = self.handler(step.message)
                step = (
                    conversation.throw(answer)
                    if isinstance(answer, HeadraceError)
                    else conversation.send(answer)
                )
        except StopIteration as stop:
            result: ResultT = stop.value
            return result
