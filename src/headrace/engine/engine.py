"""Engine of one replica: admits, queues, batches and runs requests, and completes their tickets.

All methods belong to the event loop's thread. Runs that are measured to be short happen on the
event loop, because a hand-over to a thread costs more than such a run. Longer ones happen in
threads, one per core.
"""

import asyncio
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

from headrace.core import (
    BatchingSpec,
    DeadlineExceededError,
    HeadraceError,
    InferResponse,
    InvalidArgumentError,
    OverloadedError,
    RequestCancelledError,
    RequestRows,
    Tensors,
    UnavailableError,
    arrays_of,
)
from headrace.engine.accounts import Accounts
from headrace.engine.admission import CERTAINTY, Pace, check_deadline
from headrace.engine.collate import PaddingPlan, Shapes
from headrace.engine.queue import BatchQueue, level_of
from headrace.engine.run import Batch, run_batch
from headrace.engine.service_time import ServiceTimes
from headrace.engine.ticket import Ticket, TicketState
from headrace.observe import ModelStatistics, PhaseHistograms
from headrace.runtimes import Model

_log = logging.getLogger(__name__)

INLINE_LIMIT_S: Final = 0.0005
"""A run with a shorter estimate happens on the event loop."""
INLINE_LIMIT_ALONE_S: Final = 0.002
"""The same limit where only one run may be active: a thread would only add its hand-over."""
WAITING: Final = TicketState.WAITING  # module constants are faster to look up than enum members
RUNNING: Final = TicketState.RUNNING
DONE: Final = TicketState.DONE


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Engine:
    """Runs one loaded model for many callers.

    `settings.max_batch_size` is ignored for a model that is not batched. The caller closes `model`
    after `stop`.
    """

    def __init__(
        self,
        model: Model,
        *,
        settings: BatchingSpec,
        statistics: ModelStatistics,
        phases: PhaseHistograms,
        times: ServiceTimes,
        plan: PaddingPlan | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self.statistics = statistics
        self.phases = phases
        self.max_batch_size = settings.max_batch_size if model.signature.batched else 1
        self._default_timeout_s = settings.default_timeout_s or math.inf
        self._delay_s = settings.max_queue_delay_s
        self._max_runs = (settings.max_concurrent_runs or usable_cores()) if model.concurrent else 1
        self._most_running_rows = self._max_runs * self.max_batch_size
        self._inline_limit_s = INLINE_LIMIT_S if self._max_runs > 1 else INLINE_LIMIT_ALONE_S
        self._may_inline = model.concurrent and not getattr(model, "may_wait", False)
        self._plan = plan
        self._times = times
        self._clock = clock
        self._shapes = Shapes(model.signature, plan)
        self._queue = BatchQueue(
            max_size=settings.max_queue_size,
            max_queue_delay_s=settings.max_queue_delay_s,
            max_padding_ratio=plan.max_ratio if plan else None,
        )
        self._loop = asyncio.get_running_loop()
        self._running: dict[int, Batch] = {}
        self._is_pump_scheduled = False
        self._is_stopping = False
        self._idle = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._pace = Pace(times.estimate(rows=1, length=1) or 0.0)
        self._accounts = Accounts(statistics, phases)
        self._work: SimpleQueue[Batch | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self.on_batch: Callable[[Batch], None] | None = None
        """Callback for each batch that ran, called before its requests are completed; None without
        a listener.
        """

    @property
    def waiting(self) -> int:
        """Return the number of queued requests."""
        return self._queue.size

    @property
    def max_concurrent_runs(self) -> int:
        """Return the largest number of concurrent runs."""
        return self._max_runs

    @property
    def in_flight(self) -> int:
        """Return the number of queued and running requests."""
        return self._queue.size + sum(len(batch.tickets) for batch in self._running.values())

    @property
    def is_running(self) -> bool:
        """Whether the model is in use, by runs of requests or by `run_in_thread`."""
        return bool(self._running)

    def in_flight_s(self, now: float) -> float:
        """Return the summed age of all queued and running requests; iterates over them."""
        running = (ticket for batch in self._running.values() for ticket in batch.tickets)
        ran_s = sum(now - ticket.received_at for ticket in running if ticket.state is RUNNING)
        return self._queue.waited_s(now) + ran_s

    def stuck_s(self, now: float) -> float:
        """Return for how long all run slots have been occupied by runs whose callers are gone.

        Such runs cannot be ended, and nothing else runs until one ends by itself. 0 while a slot is
        free or a run has a caller that still waits.
        """
        if len(self._running) < self._max_runs or self._has_waiting_caller:
            return 0.0
        return now - max(batch.formed_at for batch in self._running.values())

    @property
    def _has_waiting_caller(self) -> bool:
        running = self._running.values()
        return any(ticket.state is RUNNING for batch in running for ticket in batch.tickets)

    def submit(self, ticket: Ticket, now: float) -> None:
        """Queue `ticket`, whose `complete` is called later with the outcome, or refuse it.

        Raises:
            InvalidArgumentError: It has more rows than a batch may have.
            OverloadedError: The queue is full of requests of the same or a higher priority, or the
                request would be late behind requests of a higher priority.
            DeadlineExceededError: Its deadline has passed, or cannot be met behind the queue.
            UnavailableError: The engine is stopping.
        """
        try:
            self._admit(ticket, now)
        except HeadraceError as error:
            self._accounts.failed(error, now - ticket.received_at)
            ticket.state = DONE
            raise
        ticket.state = WAITING
        ticket.queued_at = now
        self._queue.push(ticket)
        if len(self._running) < self._max_runs:
            if not self._is_pump_scheduled:
                self._is_pump_scheduled = True
                self._loop.call_soon(self._pump)
        elif ticket.deadline < self._timer_at:
            self._arm_timer(ticket.deadline, now)

    def cancel(self, ticket: Ticket) -> None:
        """Drop `ticket`, whose caller left; a run that includes it continues."""
        if ticket.state is WAITING:
            self._queue.remove(ticket)
        elif ticket.state is not RUNNING:
            return
        ticket.state = DONE
        self._accounts.failed(RequestCancelledError(), self._clock() - ticket.received_at)
        self._note_idle()

    def run_in_thread(self, work: Callable[[Model], None], on_ended: Callable[[], None]) -> bool:
        """Run `work` on the model in a thread if there is room; return whether it was started.

        There is room while no request waits and fewer than half of the run slots are occupied. The
        work is not counted. A request that arrives meanwhile waits only if `work` took the last
        slot.

        Args:
            work: Must not raise.
            on_ended: Called on the event loop, unless the engine stopped before.
        """
        if self._is_stopping or self._queue.size or 2 * len(self._running) >= self._max_runs:
            return False
        now = self._clock()
        batch = Batch(tickets=[], rows=0, formed_at=now, aside=work, on_ended=on_ended)
        self._running[id(batch)] = batch
        if len(self._threads) < len(self._running):
            self._add_thread()
        self._work.put(batch)
        return True

    async def stop(self, *, timeout_s: float) -> bool:
        """Refuse new requests, complete the accepted ones, then end the threads.

        Requests that are left after `timeout_s` fail with UnavailableError. Can be called once.

        Returns:
            Whether all runs have ended; otherwise the model is still in use.
        """
        self._is_stopping = True
        self._idle.clear()
        if self._queue.size or self._running:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._idle.wait()
            except TimeoutError:
                _log.warning("drain timed out", extra={"in_flight": self.in_flight})
        is_idle = not self._running
        self._abandon()
        if self._timer is not None:
            self._timer.cancel()
        for _ in self._threads:
            self._work.put(None)
        return is_idle

    # Admission

    def _admit(self, ticket: Ticket, now: float) -> None:
        request = ticket.request
        ticket.rows = rows = request.rows
        if rows > self.max_batch_size:
            msg = (
                f"inference request batch-size must be <= {self.max_batch_size} "
                f"for '{request.model_name}', got {rows}"
            )
            raise InvalidArgumentError(msg)
        if self._is_stopping:
            msg = f"model '{request.model_name}' is stopping on this replica"
            raise UnavailableError(msg)
        ticket.level = level_of(request.priority, ticket.floor)
        queue = self._queue
        is_full = queue.is_full
        if is_full and not queue.has_below(ticket.level):
            msg = f"queue of model '{request.model_name}' is full ({queue.max_size} requests)"
            raise OverloadedError(msg, retry_after_s=self._wait_s(queue.rows))
        timeout_s = request.timeout_s
        until = ticket.received_at + (self._default_timeout_s if timeout_s is None else timeout_s)
        if until < ticket.deadline:  # noqa: PLR1730  # a third of the cost of `min`
            ticket.deadline = until
        if not self._shapes.is_uniform:
            self._shapes.mark(ticket)
        if ticket.deadline != math.inf:
            self._check_deadline(ticket, now)
        if ticket.slo_s != math.inf:
            self._check_slo(ticket, now)
        if is_full:
            self._shed(now)

    def _check_slo(self, ticket: Ticket, now: float) -> None:
        """Refuse a request that would be late behind requests of a higher priority.

        Requests of the same priority cause no refusal: the queue's bound and deadlines cover them.
        """
        queue = self._queue
        if not queue.rows_ahead(ticket.level - 1):
            return
        ahead = queue.rows_ahead(ticket.level)
        wait_s = self._wait_s(ahead)
        run_s = self._run_s(ahead + ticket.rows, ticket.length)
        if wait_s + run_s > ticket.received_at + ticket.slo_s - now:
            msg = (
                f"requests of higher priority wait for model '{ticket.request.model_name}': "
                f"this one would be answered in {wait_s + run_s:.3g} s, but the objective is"
                f" {ticket.slo_s:g} s"
            )
            raise OverloadedError(msg, retry_after_s=wait_s)

    def _shed(self, now: float) -> None:
        """Make room in a full queue by dropping a request of a lower priority."""
        victim = self._queue.shed()
        victim.state = DONE
        msg = (
            f"queue of model '{victim.request.model_name}' is full ({self._queue.max_size} "
            "requests), and a request of higher priority arrived"
        )
        self._fail(victim, OverloadedError(msg, retry_after_s=self._wait_s(self._queue.rows)), now)

    def _check_deadline(self, ticket: Ticket, now: float) -> None:
        """Refuse a request that cannot be answered in time.

        With an empty queue it is admitted anyway: only a run can correct a wrong estimate.
        """
        left_s = ticket.deadline - now
        if left_s <= 0:
            raise DeadlineExceededError("the deadline passed before the request was queued")
        queue = self._queue
        if not queue.size and len(self._running) < self._max_runs:
            return
        if self._shapes.is_uniform:
            # Most deadlines are seconds and queues take milliseconds: this rough upper bound is
            # then enough
            wait_s = (queue.rows + self._most_running_rows) * self._pace.row_interval_s
            if wait_s + self.max_batch_size * self._times.slowest_row_s < left_s * CERTAINTY:
                return
        ahead = queue.rows_ahead(ticket.level)
        run_s = self._run_s(ahead + ticket.rows, ticket.length)
        check_deadline(left_s=left_s, wait_s=self._wait_s(ahead), run_s=run_s)

    def _wait_s(self, rows_ahead: int) -> float:
        running = sum(batch.rows for batch in self._running.values())
        return self._pace.wait_s(waiting=rows_ahead, running=running)

    def _limit_for(self, length: int) -> int:
        """Return how many rows to run together at `length`; at most what the model accepts."""
        return min(self._times.best_rows(length), self.max_batch_size)

    def _run_s(self, rows: int, length: int) -> float:
        """Return the seconds of a run with as many of `rows` as are worth running together."""
        rows = min(rows, self._limit_for(length))
        return self._times.estimate(rows=rows, length=length) or 0.0

    # Forming and running batches

    def _pump(self) -> None:
        """Start every batch that is due and has a free run slot."""
        self._is_pump_scheduled = False
        now = self._clock()
        queue = self._queue
        self._expire_hopeless(now)
        while queue.size and len(self._running) < self._max_runs:
            if self._delay_s:
                due_at = queue.due_at(self._limit_for)
                if due_at is not None and due_at > now:
                    self._loop.call_later(due_at - now, self._schedule_pump)
                    break
            tickets = queue.take(self._limit_for, self._times.overhead)
            if self._start(tickets, now):
                if queue.size:  # let the sockets be read first: the next batch may grow
                    self._schedule_pump()
                break
        if queue.expires_at() < self._timer_at:
            self._arm_timer(queue.expires_at(), now)
        self._note_idle()

    def _expire_hopeless(self, now: float) -> None:
        """Drop requests that can no longer be answered in time, so that no run is spent on them.

        A single request runs anyway: only a run can correct a wrong estimate.
        """
        queue = self._queue
        if queue.expires_at() == math.inf:
            return
        lead_s = self._run_s(queue.rows, queue.head_length) if queue.size > 1 else 0.0
        if queue.expires_at() <= now + lead_s:
            self._expire(queue.expire(now + lead_s), now)

    def _schedule_pump(self) -> None:
        if not self._is_pump_scheduled:
            self._is_pump_scheduled = True
            self._loop.call_soon(self._pump)

    def _start(self, tickets: list[Ticket], now: float) -> bool:
        """Run a batch on the event loop (True), or hand it to a thread (False)."""
        rows = length = 0
        for ticket in tickets:
            ticket.state = RUNNING
            rows += ticket.rows
            if ticket.length > length:  # noqa: PLR1730  # a third of the cost of `max`
                length = ticket.length
        batch = Batch(tickets=tickets, rows=rows, formed_at=now, length=length)
        if self._may_inline:
            estimate_s = self._times.estimate(rows=rows, length=length)
            if estimate_s is not None and estimate_s < self._inline_limit_s:
                run_batch(self.model, batch, self._plan)
                self._finish(batch)
                return True
        self._running[id(batch)] = batch
        if len(self._threads) < len(self._running):
            self._add_thread()
        self._work.put(batch)
        for ticket in tickets:
            if ticket.deadline < self._timer_at:
                self._arm_timer(ticket.deadline, now)
        return False

    def _add_thread(self) -> None:
        name = f"run-{len(self._threads)}"
        thread = threading.Thread(target=self._run_in_thread, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run_in_thread(self) -> None:
        while (batch := self._work.get()) is not None:
            if batch.aside is None:
                run_batch(self.model, batch, self._plan)
            else:
                batch.aside(self.model)
            try:
                self._loop.call_soon_threadsafe(self._finish_threaded, batch)
            except RuntimeError:  # the event loop is closed: no caller waits any more
                return

    def _finish_threaded(self, batch: Batch) -> None:
        if self._running.pop(id(batch), None) is not None:
            if batch.on_ended is None:
                self._finish(batch)
            else:
                batch.on_ended()
        self._schedule_pump()
        self._note_idle()

    # Answers

    def _finish(self, batch: Batch) -> None:
        """Record the times of a run, count it and complete its tickets."""
        if self.on_batch is not None:
            self.on_batch(batch)
        now = batch.split_at
        rows = batch.rows
        if batch.executions == 1:
            self._times.observe(
                rows=rows, length=batch.length, seconds=batch.computed_at - batch.joined_at
            )
        self._pace.observe(rows=rows, started_at=batch.formed_at, ended_at=now)
        answered = 0
        total_s = queued_s = 0.0
        waits_s = []
        phases = self.phases
        due = phases.exemplars.due
        for ticket, result in zip(batch.tickets, batch.results, strict=True):
            if ticket.state is not RUNNING:
                continue
            ticket.state = DONE
            wait_s = batch.formed_at - ticket.queued_at
            waits_s.append(wait_s)
            if not isinstance(result, HeadraceError):
                answered += 1
                queued_s += wait_s
                took_s = now - ticket.received_at
                total_s += took_s
                bucket = phases.request.observe(took_s)
                if now >= due[bucket]:
                    phases.exemplars.keep(bucket, took_s, ticket.identity, now)
                ticket.complete(self._response(ticket, result))
            else:
                self._fail(ticket, result, now)
        phases.queue_wait.observe_all(waits_s)
        if answered:
            phases.postprocess.observe((self._clock() - now) / answered, answered)
        self._accounts.finished(batch, answered=answered, queued_s=queued_s, total_s=total_s)

    def _response(self, ticket: Ticket, outputs: Tensors | RequestRows) -> InferResponse:
        request = ticket.request
        if request.outputs:
            arrays = arrays_of(outputs)
            outputs = {output.name: arrays[output.name] for output in request.outputs}
        statistics = self.statistics
        return InferResponse(
            model_name=statistics.name,
            outputs=outputs,
            model_version=statistics.version,
            id=request.id,
        )

    def _fail(self, ticket: Ticket, error: HeadraceError, now: float) -> None:
        self._accounts.failed(error, now - ticket.received_at)
        ticket.complete(error)

    # Deadlines

    def _arm_timer(self, when: float, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._loop.call_later(max(when - now, 0.0) + 0.0005, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_at = math.inf
        now = self._clock()
        self._expire(self._queue.expire(now), now)
        earliest = self._queue.expires_at()
        for batch in self._running.values():
            late = []
            for ticket in batch.tickets:
                if ticket.state is RUNNING:
                    if ticket.deadline <= now:
                        late.append(ticket)
                    else:
                        earliest = min(earliest, ticket.deadline)
            self._expire(late, now)
        if earliest != math.inf:
            self._arm_timer(earliest, now)
        self._note_idle()

    def _expire(self, tickets: list[Ticket], now: float) -> None:
        for ticket in tickets:
            location = "in the queue" if ticket.state is WAITING else "while it ran"
            ticket.state = DONE
            waited_s = now - ticket.received_at
            passes = "passed" if ticket.deadline <= now else "would pass before an answer"
            msg = f"the deadline {passes} {location}, {waited_s:.3g} s after the request arrived"
            self._fail(ticket, DeadlineExceededError(msg), now)

    # Stopping

    def _note_idle(self) -> None:
        if self._is_stopping and not self._queue.size and not self._running:
            self._idle.set()

    def _abandon(self) -> None:
        """Complete all remaining tickets with an error."""
        now = self._clock()
        for ticket in self._queue.expire(math.inf):
            ticket.state = DONE
            self._fail(ticket, UnavailableError("the replica stopped before the request ran"), now)
        running, self._running = self._running, {}
        for batch in running.values():
            for ticket in batch.tickets:
                if ticket.state is RUNNING:
                    ticket.state = DONE
                    msg = "the replica stopped while the request ran"
                    self._fail(ticket, UnavailableError(msg, retry_after_s=None), now)
