"""How did TLS with each upstream go? Envoy's own counts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from headrace.gateway.clusters import arm_of

_FIELDS: Final = {
    "handshake": "done",
    "fail_verify_san": "wrong_name",
    "fail_verify_error": "untrusted",
    "fail_verify_no_cert": "untrusted",
    "connection_error": "failed",
}
HANDSHAKES: Final = rf"cluster\.[^.]+~[^.]+\.ssl\.({'|'.join(_FIELDS)})"
"""Which of Envoy's counters to ask for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handshakes:
    """Of one arm, since Envoy knows it: those that were `done`, and why others were not.

    `wrong_name`, `untrusted`: what is wrong with the upstream's certificate. `failed`: anything
    else; usually it was the upstream that ended them.
    """

    done: int = 0
    wrong_name: int = 0
    untrusted: int = 0
    failed: int = 0


def read_handshakes(counters: Mapping[str, str | int]) -> dict[tuple[str, str], Handshakes]:
    """Envoy's counters, by endpoint and arm key."""
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for name, value in counters.items():
        _, cluster, _, what = name.split(".")
        arm = arm_of(cluster)
        if arm is not None:
            fields = counts.setdefault(arm, {})
            field = _FIELDS[what]
            fields[field] = fields.get(field, 0) + int(value)
    return {arm: Handshakes(**fields) for arm, fields in counts.items()}
