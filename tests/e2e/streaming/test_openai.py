"""Streams over Apache Kafka whose records become requests of OpenAI's API."""

import json
import os
import signal
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Producer

from headrace.core import NotFoundError, UnavailableError
from headrace.streaming.broker import Broker
from headrace.streaming.brokers import open_broker
from headrace.streaming.records import Record
from tests.brokers.kafka import KafkaCluster
from tests.contract.brokers.rig import everything
from tests.e2e.gateway.openai_stub import embedding
from tests.e2e.gateway.test_openai import MODEL, running_stub
from tests.e2e.streaming.conftest import Streams, wait_for
from tests.gguf_models import smollm2
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.jvm]
KEYS, COUNT = 5, 200
ENDPOINT = """
version: 1
endpoints:
  - name: chat
    access: [key]
    upstream:
      {{url: "http://127.0.0.1:{port}", protocol: openai, model: {model}, health_interval_s: 0.2}}
    limits: {{requests_per_s: 60, burst: 10}}
streams:
"""
ANSWERS = """
  - name: answers
    endpoint: chat
    api_key_file: ./key
    openai: {{body: {{messages: [{{role: system, content: "Be brief."}}], max_tokens: 8}}}}
    source: {{broker: "{broker}", topics: [in], session_timeout_s: 6}}
    format: {{fields: {{text: question}}}}
    sink: {{topic: out, key: id, fields: [id]}}
    delivery: exactly_once
    errors: {{max_delay_s: 1}}
    workers: 2
    model_threads: 4
"""
OTHERS = """
  - name: vectors
    endpoint: chat
    api_key_file: ./key
    openai: {{path: /v1/embeddings}}
    source: {{broker: "{broker}", topics: [texts]}}
    format: {{fields: {{text: question}}}}
    sink: {{topic: vectors, fields: [question]}}
    max_batch_size: 16
  - name: bodies
    endpoint: chat
    api_key_file: ./key
    openai: {{}}
    source: {{broker: "{broker}", topics: [bodies]}}
    format: {{kind: openai}}
    sink: {{topic: responses}}
  - name: plain
    endpoint: chat
    api_key_file: ./key
    openai: {{path: /v1/completions}}
    source: {{broker: "{broker}", topics: [prompts]}}
    format: {{kind: raw}}
    sink: {{topic: completions, outputs: [text]}}
"""


@pytest.fixture
def broker(kafka: KafkaCluster) -> Iterator[Broker]:
    broker = open_broker(f"kafka://{kafka.bootstrap}?fetch.wait.max.ms=20", home=Path("/"))
    yield broker
    broker.close()


def read(broker: Broker, topic: str) -> list[Record]:
    """All of a topic; nothing while it does not exist or has no leader yet."""
    try:
        return everything(broker, topic)
    except (NotFoundError, UnavailableError):
        return []


def documents(broker: Broker, topic: str) -> list[Any]:
    return [json.loads(record.value or b"") for record in read(broker, topic)]


def errors(broker: Broker, stream: str) -> list[str]:
    """The errors of a stream's dead letters."""
    letters = [dict(record.headers) for record in read(broker, f"{stream}-dead-letters")]
    return [f"{at['headrace-error-code']!r} {at['headrace-error']!r}" for at in letters]


def send(cluster: KafkaCluster, topic: str, records: list[dict[str, Any]]) -> None:
    producer = Producer({"bootstrap.servers": cluster.bootstrap, "log_level": 0})
    for record in records:
        producer.produce(topic, json.dumps(record), key=record.get("id", "k"))
    assert producer.flush(30.0) == 0


@contextmanager
def running(streams: Streams, spec: str, cluster: KafkaCluster, port: int) -> Iterator[None]:
    """The stub and streams that call it with the key `pipeline`; the streams outlive it."""
    spec = (ENDPOINT + spec).format(port=port, model=MODEL, broker=f"kafka://{cluster.bootstrap}")
    streams.spec(spec[: spec.index("streams:")])
    with running_stub(str(port), MODEL):
        streams.up()
        created = streams.run("keys", "create", "pipeline", "--scope", "infer:chat")
        (streams.shell.folder / "key").write_text(created.stdout)
        streams.apply(spec)
        yield


@pytest.mark.long
def test_each_record_has_one_answer_over_kills_of_a_worker_and_of_the_server(
    streams: Streams, kafka: KafkaCluster, broker: Broker
) -> None:
    broker.create_topic("in", partitions=3)
    # The stub's answer has as many tokens as its record says, which identifies it.
    questions = [
        {"id": f"c{i % KEYS}", "question": json.dumps({"tokens": i, "pause_s": 0.02})}
        for i in range(1, COUNT + 1)
    ]
    refused = {"id": "c0", "question": json.dumps({"status": 400})}
    port = free_port()
    with running(streams, ANSWERS, kafka, port):
        send(kafka, "in", [*questions[: COUNT // 2], refused])
        wait_for(lambda: len(read(broker, "out")) > COUNT // 8)
        os.kill(streams.json("status", "answers")["members"][0]["pid"], signal.SIGKILL)
        wait_for(lambda: len(read(broker, "out")) >= COUNT // 2)
    send(kafka, "in", questions[COUNT // 2 :])
    wait_for(lambda: streams.json("status", "answers")["state"] == "retrying")
    with running_stub(str(port), MODEL):
        wait_for(lambda: len(read(broker, "out")) >= COUNT)
        wait_for(lambda: streams.json("status", "answers")["lag_records"] == 0)

    answers = documents(broker, "out")
    assert answers[0].keys() == {
        "id",
        "text",
        "finish_reason",
        "prompt_tokens",
        "completion_tokens",
    }
    by_key = defaultdict(list)
    for answer in answers:
        by_key[answer["id"]].append(answer["completion_tokens"])
    assert by_key == {
        f"c{number}": [i for i in range(1, COUNT + 1) if i % KEYS == number]
        for number in range(KEYS)
    }
    assert errors(broker, "answers") == [f"b'INVALID_ARGUMENT' b'{MODEL}'"]
    used = json.loads(streams.shell.run("usage", "--json").stdout)["usage"]
    assert {use["credential"] for use in used} == {"key:pipeline"}
    assert sum(use["output"] for use in used) >= sum(range(1, COUNT + 1))


def test_records_are_texts_to_embed_whole_bodies_or_plain_prompts(
    streams: Streams, kafka: KafkaCluster, broker: Broker
) -> None:
    for topic in ("texts", "bodies", "prompts"):
        broker.create_topic(topic)
    texts = [f"text {i}" for i in range(50)]
    body = {"model": "any", "messages": [{"role": "user", "content": '{"tokens": 3}'}]}
    with running(streams, OTHERS, kafka, free_port()):
        send(
            kafka, "texts", [{"question": text} for text in [*texts[:20], "x" * 1001, *texts[20:]]]
        )
        send(kafka, "bodies", [body | {"n": 2}, body | {"stream": True}])
        send(kafka, "prompts", [{"any": "bytes"}])
        wait_for(lambda: len(read(broker, "vectors")) >= 50 and errors(broker, "vectors"))
        wait_for(lambda: read(broker, "responses") and errors(broker, "bodies"))
        wait_for(lambda: read(broker, "completions"))
        # A new key needs no apply.
        created = streams.shell.run("keys", "create", "later", "--scope", "infer:chat")
        assert streams.shell.run("keys", "revoke", "pipeline").returncode == 0
        send(kafka, "prompts", [{"any": "more"}])
        wait_for(lambda: streams.json("status", "plain")["state"] == "retrying")
        (streams.shell.folder / "key").write_text(created.stdout)
        wait_for(lambda: len(read(broker, "completions")) == 2)

    found = documents(broker, "vectors")
    assert [document["question"] for document in found] == texts
    # JSON has the fewest digits that tell the bits of a 32-bit float.
    numbers = np.array([document["embedding"] for document in found], np.float32)
    assert (numbers == np.array(list(map(embedding, texts)), np.float32)).all()
    (error,) = errors(broker, "vectors")
    assert "maximum context length" in error
    (response,) = documents(broker, "responses")
    assert len(response["choices"]) == 2
    (error,) = errors(broker, "bodies")
    assert "'stream' is not possible" in error
    assert [record.value for record in read(broker, "completions")] == [b"hello"] * 2


SMOLLM2 = """
version: 1
endpoints:
  - name: chat
    model: {model}
    llm: {{slots: 2, context_tokens: 512, pooling: mean}}
    batching: {{intra_op_threads: 1}}
streams:
  - name: sentences
    endpoint: chat
    openai: {{body: {{max_tokens: 16, temperature: 0}}}}
    source: {{broker: "{broker}", topics: [questions]}}
    sink: {{topic: sentences}}
    model_threads: 2
  - name: question-vectors
    endpoint: chat
    openai: {{path: /v1/embeddings}}
    source: {{broker: "{broker}", topics: [questions]}}
    sink: {{topic: question-vectors}}
"""


def test_smollm2_answers_and_embeds_the_records_of_a_topic(
    streams: Streams, kafka: KafkaCluster, broker: Broker, request: pytest.FixtureRequest
) -> None:
    broker.create_topic("questions")
    url = f"kafka://{kafka.bootstrap}"
    streams.spec(SMOLLM2.format(model=smollm2(request), broker=url))
    streams.up()
    asked = "What is the capital of France? Answer in one sentence."
    send(kafka, "questions", [{"text": asked}, {"text": "word " * 600}, {"text": asked}])

    wait_for(lambda: len(read(broker, "sentences")) == 2)
    wait_for(lambda: len(read(broker, "question-vectors")) == 2)
    vectors = documents(broker, "question-vectors")
    for answer in documents(broker, "sentences"):
        assert "Paris" in answer["text"]
        assert answer["finish_reason"] == "stop"
        assert answer["prompt_tokens"] > answer["completion_tokens"] > 3
    assert [len(vector["embedding"]) for vector in vectors] == [576, 576]
    wait_for(lambda: errors(broker, "sentences") and errors(broker, "question-vectors"))
    for error in [*errors(broker, "sentences"), *errors(broker, "question-vectors")]:
        assert "tokens" in error, "the reason is llama.cpp's"
