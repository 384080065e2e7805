"""A URL names a broker, or what it should say instead."""

import sys
from pathlib import Path

import pytest

from headrace.core import FailedPreconditionError, InvalidArgumentError
from headrace.streaming.brokers import _KINDS, open_broker
from headrace.streaming.brokers.checks import check_topic


@pytest.mark.parametrize("url", ["", "kafka://a\0b"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="the broker's URL is empty"):
        open_broker(url, home=Path())


@pytest.mark.parametrize("url", ["amqp://host", "localhost:9092", "/a/path", "x" * 10_000])
def test_an_unknown_scheme_says_which_there_are(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"log:NAME.*kafka.*nats.*redis.*pulsar") as told:
        open_broker(url, home=Path())

    assert len(str(told.value)) < 300


def test_every_kind_is_a_module_beside_this_and_an_extra() -> None:
    assert {kind.module for kind in _KINDS.values()} == {"kafka", "nats", "redis", "pulsar"}


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


@pytest.mark.parametrize("topic", ["", ".", "..", "a b", "a\n", "ä", "x" * 250])
def test_another_name_is_refused(topic: str) -> None:
    with pytest.raises(InvalidArgumentError, match="not a valid topic name"):
        check_topic(topic)
