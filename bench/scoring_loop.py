"""A loop written by hand that scores a topic of Kafka: what a stream's worker is compared with.

python -m bench.scoring_loop DELIVERY ADDRESS TOPIC SINK COUNT MODEL

It is what an engineer writes for one model: confluent-kafka, msgspec with a struct for each end,
ONNX Runtime on one thread. At least once it stores offsets after the reports of delivery; exactly
once it ends a transaction for each batch. It has no dead letters, no metrics, no pause and no
second format. It prints `joined` once it has its partitions. After COUNT records (0: never) it
prints how long they took, in seconds of the clock and of the processor.
"""

import sys
import time
from collections import deque
from collections.abc import Sequence
from uuid import uuid4

import msgspec
import numpy as np
import onnxruntime
from confluent_kafka import Consumer, KafkaError, Message, Producer

from headrace.streaming.broker import Delivery

_MAX_CONCURRENT = 256
_WAIT_S = 0.25
_COMMIT_EVERY_S = 0.05


class Row(msgspec.Struct, gc=False):
    """What a record says."""

    x: list[float]
    at: int


class Answer(msgspec.Struct, gc=False):
    """What is answered to it."""

    at: int
    y: list[float]


class Loop:
    """Reads, scores and writes batches."""

    def __init__(self, delivery: Delivery, address: str, topic: str, sink: str, model: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._model = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        self._decode = msgspec.json.Decoder(Row).decode
        self._encode = msgspec.json.Encoder().encode
        self._sink = sink
        self._is_exact = delivery is Delivery.EXACTLY_ONCE
        self._safe = self._written = 0
        self._waiting: deque[tuple[int, Message]] = deque()
        self._done: Message | None = None
        self._commit_at = 0.0
        shared = {"bootstrap.servers": address}
        self._consumer = Consumer(
            {
                **shared,
                "group.id": uuid4().hex,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "fetch.queue.backoff.ms": 10,  # else it runs dry for a second after 100,000 records
            }
        )
        exact = {"transactional.id": uuid4().hex} if self._is_exact else {}
        self._producer = Producer(
            {**shared, "enable.idempotence": True, "linger.ms": 0 if self._is_exact else 1, **exact}
        )
        if self._is_exact:
            self._producer.init_transactions(30)
        self._consumer.subscribe([topic], on_assign=lambda *_: print("joined", flush=True))

    def step(self) -> int:
        """Score what is there; how many records that was."""
        first = self._consumer.poll(_WAIT_S)
        if first is None:
            self._settle()
            return 0
        messages = [first, *self._consumer.consume(_MAX_CONCURRENT - 1, 0)]
        rows = [self._decode(message.value() or b"") for message in messages]
        inputs = np.array([row.x for row in rows], np.float32)
        (outputs,) = self._model.run(None, {"x": inputs})
        if self._is_exact:
            self._producer.begin_transaction()
            self._write(messages, rows, outputs.tolist())
            self._producer.send_offsets_to_transaction(
                self._consumer.position(self._consumer.assignment()),
                self._consumer.consumer_group_metadata(),
            )
            self._producer.commit_transaction()
        else:
            self._write(messages, rows, outputs.tolist())
            self._written += len(messages)
            self._waiting.append((self._written, messages[-1]))
            self._settle()
        return len(messages)

    def end(self) -> None:
        """Wait until all is safe and kept."""
        self._producer.flush(60)
        self._commit_at = 0.0
        self._settle()

    def _write(
        self, messages: Sequence[Message], rows: Sequence[Row], outputs: Sequence[list[float]]
    ) -> None:
        produce, encode, sink, report = (
            self._producer.produce,
            self._encode,
            self._sink,
            self._report,
        )
        for message, row, output in zip(messages, rows, outputs, strict=True):
            while True:
                try:
                    produce(sink, encode(Answer(row.at, output)), message.key(), on_delivery=report)
                    break
                except BufferError:
                    self._producer.poll(0.02)

    def _settle(self) -> None:
        """Commit what is safe, now and then."""
        self._producer.poll(0)
        while self._waiting and self._waiting[0][0] <= self._safe:
            self._done = self._waiting.popleft()[1]
        if self._done is not None and time.monotonic() >= self._commit_at:
            self._consumer.commit(self._done, asynchronous=True)
            self._done = None
            self._commit_at = time.monotonic() + _COMMIT_EVERY_S

    def _report(self, error: KafkaError | None, _: Message) -> None:
        assert error is None, error
        self._safe += 1


def main() -> None:
    """As the command line says."""
    delivery, address, topic, sink, count, model = sys.argv[1:]
    loop = Loop(Delivery(delivery), address, topic, sink, model)
    done = 0
    began = cpu_began = 0.0
    while count == "0" or done < int(count):
        before, cpu_before = time.perf_counter(), time.process_time()
        some = loop.step()
        if some and not done:
            began, cpu_began = before, cpu_before
        done += some
    loop.end()
    print(time.perf_counter() - began, time.process_time() - cpu_began, flush=True)


if __name__ == "__main__":
    main()
