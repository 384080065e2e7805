"""What are objects called in a cluster? Names that DNS takes, each its own."""

import hashlib
import re
from typing import Final

from headrace import __version__

INSTANCE: Final = "headrace"
HTTP_PORT: Final = 8000
GRPC_PORT: Final = 8001
METRICS_PORT: Final = 8002
_LONGEST: Final = 63
_NOT_DNS: Final = re.compile(r"[^a-z0-9-]+")
_HASH: Final = 8


def object_name(*parts: str, longest: int = _LONGEST) -> str:
    """`instance-endpoint-version` as a DNS label.

    What DNS does not take becomes a dash. Where something changed or was cut, a hash of the whole
    tells two names apart that would be one.
    """
    whole = "-".join(part for part in parts if part)
    name = _NOT_DNS.sub("-", whole.lower()).strip("-")
    if name == whole and len(name) <= longest and name[:1].isalpha():
        return name
    mark = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:_HASH]
    short = name[: longest - _HASH - 3].strip("-")
    start = short if short[:1].isalpha() else f"e-{short}".rstrip("-")
    return f"{start}-{mark}"


def labels(instance: str, component: str, **more: str) -> dict[str, str]:
    """The labels of every object of ours; `more`: `endpoint`, `version`."""
    return {
        "app.kubernetes.io/name": "headrace",
        "app.kubernetes.io/instance": instance,
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/version": __version__,
        "app.kubernetes.io/managed-by": "headrace-export",
        **{f"headrace.dev/{name}": label_value(value) for name, value in more.items()},
    }


def label_value(value: str) -> str:
    """`value` as a label may be: an endpoint's name may be longer, and end in a dot."""
    if len(value) <= _LONGEST and re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?", value):
        return value
    mark = hashlib.sha256(value.encode()).hexdigest()[:_HASH]
    return f"{value[: _LONGEST - _HASH - 1].strip('._-')}-{mark}"
