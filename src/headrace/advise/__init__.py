"""Advice on a system: audit, diagram, inventory, plans. Imports `control` and below."""

from headrace.advise.audit.check import Audit, AuditCheck, AuditFinding, Hit, NotChecked, run_checks
from headrace.advise.audit.facts import AuditFacts, FindingSeverity, Need

__all__ = [
    "Audit",
    "AuditCheck",
    "AuditFacts",
    "AuditFinding",
    "FindingSeverity",
    "Hit",
    "Need",
    "NotChecked",
    "run_checks",
]
