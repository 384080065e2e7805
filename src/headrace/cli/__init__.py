"""Commands; the one place where the parts are wired together."""

from headrace.cli.app import main

__all__ = ["main"]
