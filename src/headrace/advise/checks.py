"""The published list of checks."""

from typing import Final

from headrace.advise import (
    checks_access,
    checks_host,
    checks_keys,
    checks_limits,
    checks_models,
    checks_service,
    checks_software,
    checks_spec,
    checks_tls,
)
from headrace.advise.check import Check

CHECKS: Final[tuple[Check, ...]] = tuple(
    sorted(
        (
            *checks_access.CHECKS,
            *checks_keys.CHECKS,
            *checks_tls.CHECKS,
            *checks_limits.CHECKS,
            *checks_service.CHECKS,
            *checks_models.CHECKS,
            *checks_host.CHECKS,
            *checks_software.CHECKS,
            *checks_spec.CHECKS,
        ),
        key=lambda check: check.id,
    )
)
"""By id."""


def check_table() -> str:
    """The checks as a Markdown table."""
    rows = [
        f"| `{check.id}` | {check.title} | {check.severity} | {check.why} |" for check in CHECKS
    ]
    return "\n".join(["| id | what is found | severity | why |", "|---|---|---|---|", *rows])
