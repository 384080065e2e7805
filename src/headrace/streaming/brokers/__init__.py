"""Brokers by the scheme of their URL, loaded on use. Imports `broker` and below."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Final, NamedTuple

from headrace.core import FailedPreconditionError, InvalidArgumentError
from headrace.streaming.broker import Broker

__all__ = ["open_broker"]


class _Kind(NamedTuple):
    """Module and class of a kind of broker, and the optional dependency (`extra`) that it needs."""

    module: str
    name: str
    extra: str


_LOG: Final = "log"
_REDIS: Final = _Kind("redis", "RedisBroker", "redis")
_PULSAR: Final = _Kind("pulsar", "PulsarBroker", "pulsar")
_KINDS: Final[Mapping[str, _Kind]] = {
    "kafka": _Kind("kafka", "KafkaBroker", "kafka"),
    "nats": _Kind("nats", "NatsBroker", "nats"),
    **dict.fromkeys(("redis", "rediss", "valkey", "valkeys"), _REDIS),
    **dict.fromkeys(("pulsar", "pulsar+ssl"), _PULSAR),
}
_OURS: Final = "headrace"
_SHOWN: Final = 20


def open_broker(url: str, *, home: Path) -> Broker:
    """Return the broker that `url` names.

    Args:
        url: `log:NAME` or `log:///PATH` (an embedded log, nothing to install), `kafka://HOST:PORT`,
            `nats://HOST:PORT`, `redis://HOST:PORT/DB` (or `valkey://`), `pulsar://HOST:PORT`.
        home: Folder of logs that are named without a path.

    Raises:
        InvalidArgumentError: The URL names no broker.
        FailedPreconditionError: The client package is not installed.
        HeadraceError: The broker cannot be used; the message contains the reason.
    """
    if not url or "\0" in url:
        raise InvalidArgumentError("the broker's URL is empty, or contains a zero byte")
    scheme = url.partition(":")[0].lower()
    if scheme == _LOG:
        from headrace.streaming.brokers.log.broker import open_log  # noqa: PLC0415  # on first use

        return open_log(url, home=home)
    kind = _KINDS.get(scheme)
    if kind is None:
        message = (
            f"{scheme[:_SHOWN]!r} names no broker; use log:NAME or log:///PATH (embedded, nothing "
            "to install), kafka://HOST:PORT, nats://HOST:PORT, redis://HOST:PORT/DB or "
            "pulsar://HOST:PORT"
        )
        raise InvalidArgumentError(message)
    opened: Broker = getattr(_loaded(kind), kind.name)(url)
    return opened


def _loaded(kind: _Kind) -> object:
    try:
        return import_module(f"{__name__}.{kind.module}.broker")
    except ModuleNotFoundError as error:
        if (error.name or _OURS).partition(".")[0] == _OURS:
            raise  # a bug in Headrace, not a missing package
        message = (
            f"streams over {kind.module} need the package {error.name}: "
            f"pip install 'headrace[{kind.extra}]'"
        )
        raise FailedPreconditionError(message) from error
