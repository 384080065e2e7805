"""How did TLS with each upstream go? Envoy's own counts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from headrace.gateway.clusters import arm_of

_FIELDS: Final = {
    "ssl.handshake": "done",
    "ssl.fail_verify_san": "wrong_name",
    "ssl.fail_verify_error": "untrusted",
    "ssl.fail_verify_no_cert": "untrusted",
    "ssl.connection_error": "failed",
    "upstream_cx_connect_fail": "failed",
    "health_check.network_failure": "failed",
    "membership_healthy": "healthy",
}
HANDSHAKES: Final = rf"cluster\.[^.]+~[^.]+\.({'|'.join(_FIELDS).replace('.', '[.]')})"
"""Which of Envoy's counters and gauges to ask for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handshakes:
    """Of one arm, since Envoy knows it: those that were `done`, and why others were not.

    `wrong_name`, `untrusted`: what is wrong with the upstream's certificate. `failed`: anything
    else, as connections that the upstream ended or did not take. `healthy`: how many of its servers
    answer health checks now; all, where nothing is asked.
    """

    done: int = 0
    wrong_name: int = 0
    untrusted: int = 0
    failed: int = 0
    healthy: int = 0


def read_handshakes(found: Mapping[str, str | int]) -> dict[tuple[str, str], Handshakes]:
    """Envoy's counters and gauges, by endpoint and arm key."""
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for name, value in found.items():
        _, cluster, what = name.split(".", 2)
        arm = arm_of(cluster)
        if arm is not None:
            fields = counts.setdefault(arm, {})
            field = _FIELDS[what]
            fields[field] = fields.get(field, 0) + int(value)
    return {arm: Handshakes(**fields) for arm, fields in counts.items()}
