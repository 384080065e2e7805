"""Brokers by the scheme of their URL, loaded on use. Imports `broker` and below."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Final

from headrace.core import FailedPreconditionError, InvalidArgumentError
from headrace.streaming.broker import Broker

__all__ = ["open_broker"]


_LOG: Final = "log"
_CLIENTS: Final[Mapping[str, str]] = {
    "kafka": "kafka",
    "nats": "nats",
    **dict.fromkeys(("redis", "rediss", "valkey", "valkeys"), "redis"),
    **dict.fromkeys(("pulsar", "pulsar+ssl"), "pulsar"),
}
"""Package of the broker with this scheme, and the optional dependency (extra) that it needs."""
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
    name = _CLIENTS.get(scheme)
    if name is None:
        message = (
            f"{scheme[:_SHOWN]!r} names no broker; use log:NAME or log:///PATH (embedded, nothing "
            "to install), kafka://HOST:PORT, nats://HOST:PORT, redis://HOST:PORT/DB or "
            "pulsar://HOST:PORT"
        )
        raise InvalidArgumentError(message)
    try:
        module = import_module(f"{__name__}.{name}.broker")
    except ModuleNotFoundError as error:
        if (error.name or _OURS).partition(".")[0] == _OURS:
            raise  # a bug in Headrace, not a missing package
        message = (
            f"streams over {name} need the package {error.name}: pip install 'headrace[{name}]'"
        )
        raise FailedPreconditionError(message) from error
    opened: Broker = getattr(module, f"{name.capitalize()}Broker")(url)
    return opened
