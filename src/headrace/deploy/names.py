"""What are objects called in a cluster that are no revision's, and how are they labelled?"""

import hashlib
import re
from typing import Final

from headrace import __version__
from headrace.control.kubernetes.names import (
    COMPONENT,
    ENDPOINT,
    MANAGED_BY,
    VERSION,
    label_value,
)
from headrace.control.kubernetes.names import INSTANCE as INSTANCE_LABEL

INSTANCE: Final = "headrace"
MANAGER: Final = "headrace-export"
"""Who says that an object is an export's: a control plane leaves it alone."""

_LONGEST: Final = 63
_NOT_DNS: Final = re.compile(r"[^a-z0-9-]+")
_HASH: Final = 8


def object_name(*parts: str, longest: int = _LONGEST) -> str:
    """`instance-endpoint-version` as a DNS label.

    What DNS does not take becomes a dash. Where something changed or was cut, a hash of the whole
    tells two names apart that would be one. A revision's objects have the driver's names instead.
    """
    whole = "-".join(part for part in parts if part)
    name = _NOT_DNS.sub("-", whole.lower()).strip("-")
    if name == whole and len(name) <= longest and name[:1].isalpha():
        return name
    mark = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:_HASH]
    short = name[: longest - _HASH - 3].strip("-")
    start = short if short[:1].isalpha() else f"e-{short}".rstrip("-")
    return f"{start}-{mark}"


def labels(
    instance: str, component: str, *, endpoint: str = "", version: str = ""
) -> dict[str, str]:
    """The labels of every object of ours that is no revision's."""
    said = {ENDPOINT: endpoint, VERSION: version}
    return {
        "app.kubernetes.io/name": "headrace",
        INSTANCE_LABEL: instance,
        COMPONENT: component,
        "app.kubernetes.io/version": __version__,
        MANAGED_BY: MANAGER,
        **{key: label_value(value) for key, value in said.items() if value},
    }
