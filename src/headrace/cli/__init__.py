"""Command line interface; resolves settings and wires the other packages together."""

from headrace.cli.app import main

__all__ = ["main"]
