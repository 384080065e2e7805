"""Commands for streams on a topic of Apache Pulsar with partitions; kills are in `tests/chaos`."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from headrace.testing import models
from tests.brokers.pulsar import Pulsar, running_pulsar
from tests.e2e.streaming.conftest import Start, Streams, lines, rows, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.jvm]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pulsar]:
    with running_pulsar(tmp_path_factory.mktemp("pulsar")) as running:
        yield running


def test_dead_letters_and_replays_of_a_topic_with_partitions(
    streams: Streams, start: Start, server: Pulsar
) -> None:
    name = f"s{uuid4().hex[:8]}"
    url = f"{server.url}?admin={server.admin}&subscription=key_shared"
    (streams.shell.folder / "mlp.onnx").write_bytes(models.mlp())
    spec = streams.spec(
        "version: 1\nstreams:\n"
        f"  - {{name: {name}, model: ./mlp.onnx, sink: {{topic: {name}-out}}, workers: 2,\n"
        f"     source: {{broker: '{url}', topics: [{name}]}}}}\n"
    )
    broker = ("--broker", url)

    def read(topic: str) -> list[str]:
        return streams.run("stream", "read", topic, *broker).stdout.splitlines()

    sent = lines([*rows(20), {"id": "bad", "input": "none"}, {"id": "worse", "input": []}])
    arguments = ("stream", "send", name, *broker, "--partitions", "3", "--key", "id")
    streams.run(*arguments, stdin=sent)
    assert len(read(name)) == 22
    start("stream", "up", "-f", str(spec))
    wait_for(lambda: len(read(f"{name}-out")) == 20)

    letters = streams.json("dlq", "list", name, "-f", str(spec))
    assert {letter["key"] for letter in letters} == {"bad", "worse"}
    again = streams.json("dlq", "redrive", name, "-f", str(spec), "--limit", "1")
    assert again["redriven"] == 1
    wait_for(lambda: len(streams.json("dlq", "list", name, "-f", str(spec))) == 2)
    replayed = streams.json(
        *("replay", name, "-f", str(spec), "--from", "-1h", "--to", f"{name}-again")
    )
    assert replayed["answered"] == 20
    assert len(read(f"{name}-again")) == 20
