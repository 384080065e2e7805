"""Scorer of a stream: decodes records, runs the model in batches and encodes answers.

Batches run on their own threads, so that a slow model never blocks polling. A failing record fails
alone. Records share runs and padding as requests do in the endpoint's engine.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Final, NamedTuple, Protocol

from headrace.client import NO_RETRIES, Client
from headrace.client.conversation import Attempts
from headrace.client.credentials import KeyFile, connection_options, parse_target, trust_of
from headrace.client.wires import blocking_transport
from headrace.core import (
    Clock,
    HeadraceError,
    InferRequest,
    InvalidArgumentError,
    Tensors,
    arrays_of,
)
from headrace.core.priorities import DEFAULT_LEVEL
from headrace.core.spec.stream_parts import FormatKind
from headrace.engine import BatchQueue, Ticket, usable_cores
from headrace.engine.collate import Shapes, join, split
from headrace.scoring.endpoint import EndpointModel, OpenAIModel, endpoint_scorer
from headrace.scoring.loading import load
from headrace.scoring.scorer import ScoredRows, Scorer
from headrace.streaming.codec import NO_ADDED_FIELDS, Added, Codec, EncodedAnswer, ShapeGroup
from headrace.streaming.codecs import make_codec
from headrace.streaming.feature_push import Pusher, make_pusher
from headrace.streaming.in_flight import Outcome, ScoringBatch, is_retryable
from headrace.streaming.poll_loop import Finished
from headrace.streaming.records import Record
from headrace.streaming.settings import ScoringEndpoint, WorkerSettings
from headrace.streaming.writer import Result, ResultWriter, TooOldError

_MAX_THREADS: Final = 4
"""More threads do not help: Python decodes and encodes records one at a time."""


class _Part(Ticket):
    """A group of records as a ticket of the engine's batch queue."""

    __slots__ = ("shape_group",)

    def __init__(self, group: ShapeGroup) -> None:
        super().__init__()
        self.shape_group = group
        self.rows = len(group.positions) * group.rows_each
        self.level = DEFAULT_LEVEL
        self.request = InferRequest(model_name="", inputs=group.inputs, rows=self.rows)


class Counted(NamedTuple):
    """Number of model runs, and of rows in them."""

    runs: int = 0
    rows: int = 0


class ScoreRecords(Protocol):
    """Scores records. Used by one thread."""

    def answer(
        self, records: Sequence[Record], *, now_s: float, added: Added = NO_ADDED_FIELDS
    ) -> list[Result]:
        """Return the result of each record: its answer, or the reason why it has none.

        Args:
            now_s: Unix time, to find records that are too old.
            added: Fields of the records in addition to their own.

        Raises:
            HeadraceError: The error affects all records, and may be temporary.
        """

    def count(self) -> Counted:
        """Return the runs since the last call."""


class RecordScorer:
    """Scores records that have a value. Used by one thread."""

    def __init__(
        self,
        scorer: Scorer,
        codec: Codec,
        *,
        max_batch_size: int,
        outputs: Sequence[str] | None = None,
    ) -> None:
        self._scorer = scorer
        self._codec = codec
        self._outputs = outputs
        self._max_batch_size = max_batch_size
        self._plan = scorer.loaded.plan
        self._shapes = Shapes(scorer.signature, self._plan)
        self._counted = Counted()

    def answer(self, records: Sequence[Record], added: Added = NO_ADDED_FIELDS) -> list[Result]:
        """Return the answer to each record, or the reason why it has none.

        Args:
            added: Fields of the records in addition to their own.

        Raises:
            HeadraceError: The error affects all records, and may be temporary.
        """
        decoded = self._codec.decode(records, added)
        results: dict[int, Result] = dict(decoded.errors)
        for run in self._runs(decoded.groups):
            self._run(run, results)
        return list(map(results.__getitem__, range(len(records))))

    def count(self) -> Counted:
        """Return the runs since the last call."""
        counted, self._counted = self._counted, Counted()
        return counted

    def _runs(self, groups: Sequence[ShapeGroup]) -> list[list[_Part]]:
        """Return which groups run together, within `max_batch_size` rows."""
        parts = [_Part(group) for group in groups]
        if len(parts) < 2 or not self._scorer.signature.batched:  # noqa: PLR2004  # a single part
            return [[part] for part in parts]
        queue = BatchQueue(
            max_size=len(parts),
            max_padding_ratio=None if self._plan is None else self._plan.max_ratio,
        )
        for part in parts:
            if not self._shapes.is_uniform:
                self._shapes.mark(part)
            queue.push(part)
        runs = []
        while queue.size:
            taken = queue.take(lambda _: self._max_batch_size)
            runs.append([part for part in taken if isinstance(part, _Part)])
        return runs

    def _run(self, parts: list[_Part], results: dict[int, Result]) -> None:
        inputs, length = join(parts, self._plan)
        rows = sum(part.rows for part in parts)
        self._counted = Counted(self._counted.runs + 1, self._counted.rows + rows)
        try:
            scored = self._scorer.score(inputs, self._outputs)
        except HeadraceError as error:
            if is_retryable(error):
                raise
            results.update(
                (position, error) for part in parts for position in part.shape_group.positions
            )
            return
        scored_records: list[Sequence[int]] = [
            range(len(part.shape_group.positions)) for part in parts
        ]
        if scored.errors:
            scored_records = self._rows_without_errors(parts, scored, results)
            if not scored.outputs:
                return
        outputs = split(scored.outputs, parts, plan=self._plan, padded_to=length)
        for part, part_outputs, valid in zip(parts, outputs, scored_records, strict=True):
            if len(valid):
                self._encode(part.shape_group, arrays_of(part_outputs), valid, results)

    def _rows_without_errors(
        self, parts: list[_Part], scored: ScoredRows, results: dict[int, Result]
    ) -> list[Sequence[int]]:
        """Return the good records of each part; keep only their rows in the parts."""
        by_part: list[Sequence[int]] = []
        first = 0
        for part in parts:
            group, end = part.shape_group, first + part.rows
            valid = []
            for index, position in enumerate(group.positions):
                start = first + index * group.rows_each
                rows = range(start, start + group.rows_each)
                bad = next((scored.errors[row] for row in rows if row in scored.errors), None)
                if bad is None:
                    valid.append(index)
                else:
                    results[position] = bad
            by_part.append(valid)
            part.rows = sum(row not in scored.errors for row in range(first, end))
            first = end
        return by_part

    def _encode(
        self,
        group: ShapeGroup,
        outputs: Tensors,
        selected: Sequence[int],
        results: dict[int, Result],
    ) -> None:
        """Add the answers to the selected records; an error is only its own record's."""
        positions = [group.positions[index] for index in selected]
        try:
            results.update(
                zip(positions, self._codec.encode(group, outputs, selected), strict=True)
            )
        except HeadraceError as error:
            if is_retryable(error):
                raise
            if len(selected) == 1:
                results[positions[0]] = error
                return
            for row, index in enumerate(selected):
                alone = outputs
                if self._scorer.signature.batched:
                    rows = slice(row * group.rows_each, (row + 1) * group.rows_each)
                    alone = {name: array[rows] for name, array in outputs.items()}
                self._encode(group, alone, [index], results)


class Stages:
    """Pushes records to an online store, then scores them; handles tombstones separately.

    Args:
        scorer: Scores records that have a value; None where they are only pushed.
        forwards: Whether tombstones are answered by a tombstone; else they get no answer.
        pusher: Writes records to an online store before they are scored; None for no push.
        max_age_s: Older records are not scored; None for any age.
    """

    def __init__(
        self,
        scorer: RecordScorer | None,
        *,
        forwards: bool,
        pusher: Pusher | None = None,
        max_age_s: float | None = None,
    ) -> None:
        self._scorer = scorer
        self._forwards = forwards
        self._pusher = pusher
        self._max_age_s = max_age_s

    def answer(
        self, records: Sequence[Record], *, now_s: float, added: Added = NO_ADDED_FIELDS
    ) -> list[Result]:
        """Return the result of each record; see `ScoreRecords`."""
        results: dict[int, Result] = dict(added.errors)
        if None in [record.value for record in records]:
            for index, record in enumerate(records):
                if record.value is None:
                    results[index] = _tombstone(record) if self._forwards else None
        if self._pusher is not None:
            left, fresh, extra = _left(records, added, results)
            pushed = self._pusher.push(fresh, extra) if fresh else {}
            results.update((left[index], error) for index, error in pushed.items())
        if self._max_age_s is not None:
            for index, record in enumerate(records):
                age_s = now_s - record.timestamp_s
                if index not in results and record.timestamp_s > 0 and age_s > self._max_age_s:
                    limit = f"only records up to {self._max_age_s:g} s are scored"
                    results[index] = TooOldError(f"the record is {age_s:.1f} s old; {limit}")
        if self._scorer is not None and not results:  # the usual case
            return self._scorer.answer(records, added)
        left, fresh, extra = _left(records, added, results)
        if self._scorer is not None and fresh:
            results.update(zip(left, self._scorer.answer(fresh, extra), strict=True))
        return [results.get(index) for index in range(len(records))]

    def count(self) -> Counted:
        """Return the runs since the last call; see `ScoreRecords`."""
        return Counted() if self._scorer is None else self._scorer.count()


def _tombstone(record: Record) -> Result:
    if record.key is None:
        return InvalidArgumentError("the record has neither a value nor a key")
    return EncodedAnswer(record.key, None)


def _left(
    records: Sequence[Record], added: Added, results: Mapping[int, Result]
) -> tuple[list[int], list[Record], Added]:
    """Return records without a result: their positions, themselves and their added fields."""
    left = [index for index in range(len(records)) if index not in results]
    return left, [records[index] for index in left], added.select(left)


def load_scorer(settings: WorkerSettings) -> Scorer | None:
    """Load the model, or read the endpoint's signature; None for a stream that only pushes.

    Raises:
        HeadraceError: The model or the endpoint is not available.
    """
    if settings.endpoint is not None:
        return _load_endpoint(settings, settings.endpoint)
    model = settings.model
    if model is None:
        return None
    return Scorer(load(model), name=model.model_name, version=model.model_version)


def _load_endpoint(settings: WorkerSettings, endpoint: ScoringEndpoint) -> Scorer:
    """Return a scorer that calls an endpoint. The stream retries, so it does not."""
    name, version = endpoint.name, endpoint.version
    key = KeyFile(Path(endpoint.api_key_file)) if endpoint.api_key_file else None
    model: EndpointModel | OpenAIModel
    if endpoint.openai is not None:
        target, trust = parse_target(endpoint.url), trust_of(endpoint.ca_file or None, None, "")
        options = connection_options(target, api_key=key, trust=trust)
        model = OpenAIModel(
            blocking_transport(target, options),
            f"{name}:{version}" if version else name,
            endpoint.openai,
            Attempts.of_offline_run(timeout_s=endpoint.timeout_s, retry_for_s=0.0),
            has_bodies=settings.format.kind is FormatKind.OPENAI,
        )
    else:
        client = Client(
            endpoint.url,
            timeout_s=endpoint.timeout_s,
            api_key=key,
            ca_file=endpoint.ca_file or None,
            retry=NO_RETRIES,
        )
        try:
            model = EndpointModel(client, name, version)
        except HeadraceError:
            client.close()
            raise
    return endpoint_scorer(model, name, version=version, max_batch_size=settings.max_batch_size)


def make_stages(settings: WorkerSettings, scorer: Scorer | None) -> list[Stages]:
    """Return the scoring stages, one for each thread.

    Raises:
        HeadraceError: The settings do not fit the model or a feature view.
    """
    count = settings.model_threads or min(usable_cores(), _MAX_THREADS)
    if scorer is not None and not scorer.concurrent:
        count = 1
    pusher = None
    if settings.features is not None:
        count = 1  # rows of the same time are pushed in order
        pusher = make_pusher(settings)
    return [
        Stages(
            None
            if scorer is None
            else RecordScorer(
                scorer,
                make_codec(settings, scorer),
                max_batch_size=settings.max_batch_size,
                outputs=settings.output.outputs or None,
            ),
            forwards=bool(settings.sink) and settings.output.forwards_tombstones,
            pusher=pusher,
            max_age_s=settings.errors.max_age_s,
        )
        for _ in range(count)
    ]


class ModelThreads:
    """One thread for each scoring stage. All methods but `wake` are for the session's thread.

    Threads are daemons: a thread that hangs in its model does not keep the process from ending.
    """

    def __init__(
        self,
        answerers: Sequence[ScoreRecords],
        writer: ResultWriter,
        *,
        clock: Clock,
        wake: Callable[[], None],
    ) -> None:
        self._answerers = answerers
        self._writer = writer
        self._clock = clock
        self._wake = wake
        self._queue: SimpleQueue[ScoringBatch | None] = SimpleQueue()
        self._finished: deque[Finished | BaseException] = deque()
        self._is_finished = threading.Event()
        self._in_flight = 0
        for number, answerer in enumerate(answerers):
            threading.Thread(
                target=self._work, args=(answerer,), name=f"model-{number}", daemon=True
            ).start()

    @property
    def is_free(self) -> bool:
        """Whether a submitted batch would run at once."""
        return self._in_flight < len(self._answerers)

    @property
    def has_room(self) -> bool:
        """Whether a batch may be submitted: it runs at once, or is the only one that waits."""
        return self._in_flight <= len(self._answerers)

    @property
    def is_idle(self) -> bool:
        """Whether all batches have been collected."""
        return self._in_flight == 0

    def submit(self, batch: ScoringBatch) -> None:
        """Run a batch in a free thread; `wake` is called when it is finished."""
        self._in_flight += 1
        self._queue.put(batch)

    def finished(self) -> list[Finished]:
        """Return batches that finished since the last call."""
        self._is_finished.clear()
        batches = []
        while self._finished:
            item = self._finished.popleft()
            self._in_flight -= 1
            if isinstance(item, BaseException):
                raise item  # a bug: the worker ends with this error
            batches.append(item)
        return batches

    def wait(self, timeout_s: float) -> None:
        """Wait until a batch finishes, or until the timeout."""
        self._is_finished.wait(timeout_s)

    def close(self) -> None:
        """Let the threads end after their queued batches."""
        for _ in self._answerers:
            self._queue.put(None)

    def _work(self, answerer: ScoreRecords) -> None:
        while (batch := self._queue.get()) is not None:
            started = time.perf_counter()
            try:
                now_s = self._clock.now()
                results = answerer.answer(batch.records, now_s=now_s, added=batch.added)
                result: Sequence[Outcome] | HeadraceError = self._writer.outcomes(
                    batch.records, results, attempts=batch.attempts, now_s=now_s
                )
            except HeadraceError as error:
                result = error
            except Exception as error:  # noqa: BLE001  # `finished` raises it
                self._add(error)
                continue
            runs, rows = answerer.count()
            seconds = time.perf_counter() - started
            self._add(Finished(batch=batch, result=result, seconds=seconds, runs=runs, rows=rows))

    def _add(self, item: Finished | BaseException) -> None:
        self._finished.append(item)
        self._is_finished.set()
        self._wake()
