"""How does a line of the request log look to a person? One line each, whatever a caller sent."""

import json
from collections.abc import Mapping
from typing import Any, Final

HEADER: Final = (
    f"{'time':<12}  {'code':<17} {'endpoint':<16} {'version':<8} {'took':>9} {'replica':>9}  "
    f"{'caller':<16} {'trace':<32}  request"
)
_NO: Final = "-"
_OK: Final = "OK"


def request_line(text: str) -> str:
    """`text`, a JSON line of the gateway's, in columns; as it is if it is something else."""
    try:
        entry = json.loads(text)
    except ValueError:
        return _one_line(text)
    if not isinstance(entry, Mapping):
        return _one_line(text)
    endpoint, version = _who_answered(entry)
    took_ms, replica_us = entry.get("duration_ms"), entry.get("replica_us")
    line = (
        f"{str(entry.get('time'))[11:23]:<12}  {_outcome(entry):<17} {endpoint:<16} {version:<8} "
        f"{_ms(took_ms):>9} {_ms(replica_us, 1000):>9}  {_text(entry, 'caller'):<16} "
        f"{trace_of(entry) or _NO:<32}  {_text(entry, 'method')} {_text(entry, 'path')}"
    )
    return _one_line(line)


def is_about(text: str, endpoint: str) -> bool:
    """Whether a JSON line is of a request to `endpoint`; of any if that is empty."""
    if not endpoint:
        return True
    try:
        entry = json.loads(text)
    except ValueError:
        return False
    return isinstance(entry, Mapping) and _who_answered(entry)[0] == endpoint


def trace_of(entry: Mapping[str, Any]) -> str:
    """The trace that a request belongs to; empty if nobody said."""
    if found := entry.get("trace_id"):
        return str(found)
    parts = str(entry.get("traceparent") or "").split("-")
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else ""  # noqa: PLR2004  # W3C's form


def _who_answered(entry: Mapping[str, Any]) -> tuple[str, str]:
    """Endpoint and version, of the cluster if one was reached."""
    endpoint, _, key = str(entry.get("cluster") or "").partition("~")
    if key:
        return endpoint, f"v{key}"
    return _text(entry, "endpoint"), _NO


def _outcome(entry: Mapping[str, Any]) -> str:
    """HTTP's status, gRPC's where it says more; why it ended early, if it did."""
    code, grpc = str(entry.get("code") or "left"), entry.get("grpc_status")
    flags = entry.get("flags")
    word = f"{code} {grpc}" if grpc and grpc != _OK and code == "200" else code
    return f"{word} {flags}" if flags and flags != _NO else word


def _ms(value: object, per_ms: int = 1) -> str:
    return f"{value / per_ms:.1f} ms" if isinstance(value, int | float) else _NO


def _text(entry: Mapping[str, Any], name: str) -> str:
    return str(entry.get(name) or _NO)


def _one_line(text: str) -> str:
    """What a caller sent may hold escapes: they stay on their line, off the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
