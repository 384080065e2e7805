"""A client of Pulsar that shares no code with the package: writes numbered records, and counts.

A process of its own, as other modules of pybind11 lose the classes of their exceptions beside it.
"""

import json
import sys
import threading
import time

import pulsar

PER_S = 400
KEYS = 40
LIMIT_S = 120


def write(client: pulsar.Client, topic: str) -> None:
    """Write records, each with its key and number, until the input ends."""
    producer = client.create_producer(topic, block_if_queue_full=True)
    print("begins", flush=True)  # noqa: T201  # the parent reads it
    ends = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        ends.set()

    threading.Thread(target=listen, daemon=True).start()
    refused: list[pulsar.Result] = []

    def hear(result: pulsar.Result, _: object) -> None:
        if result != pulsar.Result.Ok:
            refused.append(result)

    count, begun = 0, time.monotonic()
    while not ends.wait(max(begun + count / PER_S - time.monotonic(), 0)):
        key = f"k{count % KEYS}"
        name = {"headrace-key": f'"{key}:{count}"'}
        producer.send_async(bytes(16), hear, partition_key=key, properties=name)
        count += 1
    producer.flush()
    print(json.dumps({"records": count - len(refused)}))  # noqa: T201  # the parent reads it


def read(client: pulsar.Client, topic: str) -> None:
    """Tell how many different records there are, and how many are out of order within their key."""
    reader = client.create_reader(topic, pulsar.MessageId.earliest)
    seen: set[str] = set()
    newest: dict[str, int] = {}
    count = out_of_order = 0
    while reader.has_message_available():
        label = reader.read_next(LIMIT_S * 1000).properties()["headrace-key"].strip('"')
        count += 1
        if label not in seen:
            seen.add(label)
            key, _, number = label.partition(":")
            out_of_order += int(number) < newest.get(key, -1)
            newest[key] = max(int(number), newest.get(key, -1))
    told = {"all": count, "different": len(seen), "out_of_order": out_of_order}
    print(json.dumps(told))  # noqa: T201  # the parent reads it


def main(mode: str, url: str, topic: str) -> None:
    silent = pulsar.FileLogger(pulsar.LoggerLevel.Error, "/dev/null")
    client = pulsar.Client(url, operation_timeout_seconds=LIMIT_S, logger=silent)
    topic = f"persistent://public/default/{topic}"
    if mode == "write":
        write(client, topic)
    else:
        read(client, topic)
    client.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
