"""What does `kafka://HOST:PORT,HOST:PORT?option=value` say about a cluster and how to speak to it?

Options are librdkafka's, so that all ways to log in and to encrypt are there, and a few of our own.
`${NAME}` in an option stands for a variable of the environment.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from headrace.core import FailedPreconditionError, InvalidArgumentError
from headrace.core.redact import is_secret_name, remember_resolved
from headrace.core.variables import filled_in, url_filled_in
from headrace.streaming.brokers.kafka_options import LIMIT, POLL_INTERVAL, TRANSACTION, KafkaOptions

_PORT: Final = 9092
_SERVER: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_OPTIONS: Final = "an option of Kafka"
_NAME: Final = re.compile(r"[a-z][a-z0-9._]{0,99}")
_FILE: Final = "properties_file"
_MEMBERSHIP: Final = "membership"
_COMPRESSION: Final = "compression"
_STATIC: Final = "static"
_DYNAMIC: Final = "dynamic"
_MOST_BYTES: Final = 1 << 20
_SHOWN: Final = 60
_OURS: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("bootstrap.servers", "metadata.broker.list"), "the servers stand before the '?'"
    ),
    **dict.fromkeys(
        (
            "group.id",
            "group.instance.id",
            "transactional.id",
            "client.id",
            "session.timeout.ms",
            "heartbeat.interval.ms",
            "auto.offset.reset",
        ),
        "the stream's own settings say that",
    ),
    **dict.fromkeys(
        (
            "enable.auto.commit",
            "auto.commit.enable",
            "auto.commit.interval.ms",
            "enable.auto.offset.store",
            "enable.idempotence",
            "enable.partition.eof",
            "isolation.level",
            "acks",
            "request.required.acks",
            "statistics.interval.ms",
            "delivery.report.only.error",
        ),
        "what is promised depends on it",
    ),
    **dict.fromkeys(
        ("plugin.library.paths", "ssl.engine.location", "ssl.providers"),
        "it would load code into this process",
    ),
}


def kafka_options(url: str, environment: Mapping[str, str] | None = None) -> KafkaOptions:
    """What a URL says.

    Args:
        environment: None for this process's.

    Raises:
        InvalidArgumentError: It says something that cannot be.
        FailedPreconditionError: A variable or a file that it names is not there.
    """
    # Before it is taken apart: what a variable holds is never looked at for variables itself.
    parts = urlsplit(url_filled_in(url, what=_OPTIONS, environment=environment))
    if "@" in parts.netloc:
        message = (
            "a Kafka URL has no user before the host: say ?security.protocol=SASL_SSL&"
            "sasl.mechanism=SCRAM-SHA-512&sasl.username=NAME&sasl.password=${VARIABLE}"
        )
        raise InvalidArgumentError(message)
    if parts.path.strip("/") or parts.fragment:
        message = (
            f"a Kafka URL has no path or fragment: {(parts.path or parts.fragment)[:_SHOWN]!r}"
        )
        raise InvalidArgumentError(f"{message}; topics are named in the stream")
    said = _checked(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=False))
    file = said.pop(_FILE, None)
    if file is not None:
        said = _properties(Path(file), environment) | said
    membership = said.pop(_MEMBERSHIP, _STATIC)
    if membership not in {_STATIC, _DYNAMIC}:
        message = f"membership={membership[:_SHOWN]!r} of Kafka: use {_STATIC} or {_DYNAMIC}"
        raise InvalidArgumentError(message)
    if _COMPRESSION in said:
        said["compression.type"] = said.pop(_COMPRESSION)
    _check_numbers(said)
    return KafkaOptions(
        address=_servers(parts.netloc), is_static=membership == _STATIC, settings=said
    )


def options_text(url: str) -> str:
    """What the file of options says that a URL names; empty where there is none to read."""
    with suppress(OSError, ValueError):  # whoever needs it says what is wrong
        named = dict(parse_qsl(urlsplit(url).query)).get(_FILE, "")
        if named and url.startswith("kafka:"):
            with Path(named).open("rb") as file:
                return file.read(_MOST_BYTES).decode("utf-8")
    return ""


def _servers(netloc: str) -> str:
    """`HOST:PORT,HOST:PORT`, each with its port."""
    found = []
    for server in netloc.split(","):
        match = _SERVER.fullmatch(server)
        port = int(match[2] or _PORT) if match is not None else 0
        if match is None or not 1 <= port <= 65535:  # noqa: PLR2004  # the largest port there is
            message = (
                f"{server[:_SHOWN]!r} is no server of Kafka: kafka://HOST:PORT, or several with "
                "commas between them"
            )
            raise InvalidArgumentError(message)
        found.append(f"{match[1]}:{port}")
    return ",".join(found)


def _checked(pairs: list[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in _OURS:
            raise InvalidArgumentError(f"'{name}' cannot be set for Kafka: {_OURS[name]}")
        if _NAME.fullmatch(name) is None:
            raise InvalidArgumentError(f"{name[:_SHOWN]!r} is no option of Kafka's client")
        if name in found:
            raise InvalidArgumentError(f"'{name}' stands twice among the options of Kafka")
        found[name] = value
    return found


def _check_numbers(said: Mapping[str, str]) -> None:
    for name in (LIMIT, TRANSACTION, POLL_INTERVAL):
        text = said.get(name, "1")
        if not (text.isascii() and text.isdecimal() and int(text) > 0):
            raise InvalidArgumentError(f"{name}={text[:_SHOWN]!r} of Kafka has to be a number")


def _properties(path: Path, environment: Mapping[str, str] | None) -> dict[str, str]:
    """Lines of `name=value`, comments and empty ones apart."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise FailedPreconditionError(f"cannot read the options in {path}: {reason}") from error
    if len(data) > _MOST_BYTES:
        raise FailedPreconditionError(f"the options in {path} exceed {_MOST_BYTES} bytes")
    pairs = []
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped[0] in "#!":
            continue
        name, equals, value = stripped.partition("=")
        if not equals or name.strip() in {_FILE, _MEMBERSHIP, _COMPRESSION}:
            message = f"line {number} of {path} is no name=value of Kafka's client"
            raise InvalidArgumentError(message)
        pairs.append((name.strip(), value.strip()))
        if is_secret_name(name.strip()):
            remember_resolved(value.strip(), f"file:{path}")
    return {
        name: filled_in(value, what=_OPTIONS, environment=environment)
        for name, value in _checked(pairs).items()
    }
