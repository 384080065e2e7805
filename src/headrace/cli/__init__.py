"""Commands; the one place where the parts are wired together."""

from headrace.cli.app import main
from headrace.cli.reference import reference

__all__ = ["main", "reference"]
