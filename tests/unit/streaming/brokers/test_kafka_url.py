"""What a URL of Kafka says, and what it may not say."""

from pathlib import Path

import pytest

from headrace.core import FailedPreconditionError, HeadraceError, InvalidArgumentError
from headrace.streaming.brokers.kafka_url import kafka_options, options_text


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("kafka://one", "one:9092"),
        ("kafka://one:19092", "one:19092"),
        ("kafka://one,two:1,10.0.0.1:65535", "one:9092,two:1,10.0.0.1:65535"),
        ("kafka://[::1]:9093/", "[::1]:9093"),
    ],
)
def test_servers_have_ports(url: str, address: str) -> None:
    options = kafka_options(url, {})

    assert options.address == address
    assert options.client()["bootstrap.servers"] == address


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("kafka://", "'' is no server"),
        ("kafka://a,,b", "'' is no server"),
        ("kafka://a:0", "'a:0' is no server"),
        ("kafka://a:65536", "'a:65536' is no server"),
        ("kafka://a b", "'a b' is no server"),
        ("kafka://me:word@a", "no user before the host"),
        ("kafka://a/topic", "no path or fragment: '/topic'"),
        ("kafka://a?group.id=x", "'group.id' cannot be set.*the stream's own settings"),
        ("kafka://a?acks=0", "'acks' cannot be set.*what is promised"),
        ("kafka://a?plugin.library.paths=x", "would load code"),
        ("kafka://a?linger.ms=1&linger.ms=2", "'linger.ms' stands twice"),
        ("kafka://a?Linger=1", "'Linger' is no option"),
        ("kafka://a?membership=both", "membership='both'"),
        ("kafka://a?message.max.bytes=big", "message.max.bytes='big'"),
        ("kafka://a?message.max.bytes=0", "message.max.bytes='0'"),
        ("kafka://a?transaction.timeout.ms=-1", "transaction.timeout.ms='-1'"),
    ],
)
def test_what_cannot_be_is_told(url: str, told: str) -> None:
    with pytest.raises(InvalidArgumentError, match=told):
        kafka_options(url, {})


def test_a_secret_comes_from_the_environment_whatever_characters_it_has() -> None:
    options = kafka_options("kafka://a?sasl.password=${WORD}", {"WORD": "a&b=c%20+d${X}"})

    assert options.client()["sasl.password"] == "a&b=c%20+d${X}"


def test_a_variable_that_is_not_set_is_named_and_no_value_shown() -> None:
    with pytest.raises(FailedPreconditionError, match="no variable WORD: ") as told:
        kafka_options("kafka://a?sasl.username=hush&sasl.password=${WORD}", {})

    assert "hush" not in str(told.value)


def test_options_of_a_file_give_way_to_those_of_the_url(tmp_path: Path) -> None:
    file = tmp_path / "kafka.properties"
    file.write_text(
        "# ours\n! and theirs\n\nlinger.ms = 7\nsasl.password=${WORD}\nssl.ca.location=/a=b\n"
    )

    url = f"kafka://a?properties_file={file}&linger.ms=3"
    client = kafka_options(url, {"WORD": "hush"}).client()

    assert (client["linger.ms"], client["sasl.password"]) == ("3", "hush")
    assert client["ssl.ca.location"] == "/a=b"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"linger.ms 7", "line 1 of .* is no name=value"),
        (b"\nmembership=static", "line 2 of .* is no name=value"),
        (b"group.id=x", "'group.id' cannot be set"),
        (b"\xff\xfe", "no text in UTF-8"),
        (b"#" * ((1 << 20) + 1), "exceed 1048576 bytes"),
    ],
)
def test_a_file_that_says_something_wrong_is_named(
    tmp_path: Path, content: bytes, told: str
) -> None:
    file = tmp_path / "kafka.properties"
    file.write_bytes(content)

    with pytest.raises(HeadraceError, match=told):
        kafka_options(f"kafka://a?properties_file={file}", {})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match=r"gone: No such file"):
        kafka_options(f"kafka://a?properties_file={tmp_path / 'gone'}", {})


def test_a_file_of_options_is_read_as_text_for_whoever_asks_what_it_names(tmp_path: Path) -> None:
    file = tmp_path / "client.properties"
    file.write_text("sasl.password=${SECRET}\n")

    assert options_text(f"kafka://h?properties_file={file}") == "sasl.password=${SECRET}\n"
    for url in (
        "kafka://h",
        f"kafka://h?properties_file={tmp_path}",
        f"kafka://h?properties_file={tmp_path}/none",
        "kafka://h?properties_file=%00",
        f"log://x?properties_file={file}",
        "kafka://[",
    ):
        assert options_text(url) == ""
