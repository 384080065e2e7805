"""Command line: one module or package per command group. Imports `console` and below."""

from headrace.cli.app import main

__all__ = ["main"]
