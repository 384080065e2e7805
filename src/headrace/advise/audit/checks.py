"""The published list of checks."""

from typing import Final

from headrace.advise.audit import access as checks_access
from headrace.advise.audit import host as checks_host
from headrace.advise.audit import models as checks_models
from headrace.advise.audit import software as checks_software
from headrace.advise.audit import spec as checks_spec
from headrace.advise.audit import tls as checks_tls
from headrace.advise.audit.check import AuditCheck

_MODULES: Final = (
    checks_access,
    checks_host,
    checks_models,
    checks_software,
    checks_spec,
    checks_tls,
)
CHECKS: Final = tuple(
    sorted(
        (
            value
            for module in _MODULES
            for value in vars(module).values()
            if isinstance(value, AuditCheck)
        ),
        key=lambda check: check.id,
    )
)
"""All checks, sorted by id."""


def check_table() -> str:
    """Return the checks as a Markdown table."""
    rows = []
    for check in CHECKS:
        # Text to paste has no period.
        fix = check.fix if check.fix.endswith(".") else f"`{check.fix}`"
        rows.append(f"| `{check.id}` | {check.severity} | {check.title} | {check.why} | {fix} |")
    head = [
        "| id | severity | finding | risk | fix |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *rows])
