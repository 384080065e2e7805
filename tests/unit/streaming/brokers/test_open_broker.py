"""A URL names a broker, or what it should say instead."""

import sys
from pathlib import Path

import pytest

from headrace.core import FailedPreconditionError, InvalidArgumentError
from headrace.streaming.brokers import open_broker
from headrace.streaming.brokers.checks import check_topic


@pytest.mark.parametrize(
    ("urls", "told"),
    [
        (["", "kafka://a\0b"], "the broker's URL is empty"),
        (
            ["amqp://host", "localhost:9092", "/a/path", "x" * 10_000],
            "log:NAME.*kafka.*nats.*redis.*pulsar",
        ),
        (["log:"], "log name ''"),
        (["log:a/b"], "log name 'a/b'"),
        (["log://host/path"], "names a host"),
        (["log:a?sync=never"], "normal or full"),
        (["log:a?retention_s=-1"], "retention_s='-1'"),
        (["log:a?retention_bytes=much"], "retention_bytes='much'"),
        (["log:a?keep=1"], "a log has no option 'keep'"),
        (["kafka://h?no.such=1"], 'No such configuration property: "no.such"'),
        (["nats://h:1?keep=1"], "its options are"),
        (["nats://"], "names no host"),
        (["nats://h:port", "redis://h:1?keep=1", "redis://u:p/w@h:x"], "cannot be read"),
        (["nats://h:1?tls_ca_file=/nonexistent"], "a file for TLS"),
        (["redis://h:1?maxlen=-1"], "maxlen='-1'"),
        (["redis://h:1?maxlen=5&retention_s=5"], "not both"),
    ],
)
def test_a_url_that_says_something_wrong_is_refused_before_a_connection(
    tmp_path: Path, urls: list[str], told: str
) -> None:
    for url in urls:
        with pytest.raises((InvalidArgumentError, FailedPreconditionError), match=told) as refused:
            open_broker(url, home=tmp_path).create_topic("t")
        assert len(str(refused.value)) < 300
    assert list(tmp_path.iterdir()) == []


def test_a_client_that_is_not_installed_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = "headrace.streaming.brokers"
    (tmp_path / "kafka.py").write_text("import no_such_client\n")
    monkeypatch.setattr(sys.modules[package], "__path__", [str(tmp_path)])
    for name in [name for name in sys.modules if name.startswith(f"{package}.kafka")]:
        monkeypatch.delitem(sys.modules, name)

    with pytest.raises(FailedPreconditionError, match=r"no_such_client.*headrace\[kafka\]"):
        open_broker("kafka://localhost", home=tmp_path)


@pytest.mark.parametrize("topic", ["a", "a.b_c-D9", "x" * 249])
def test_a_topic_is_named_as_kafka_does(topic: str) -> None:
    assert check_topic(topic) == topic
