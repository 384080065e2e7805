"""Replicas that a Python program starts and calls: `headrace.serve`. Imports `cli` and below."""

from headrace.launch.server import ServeError, Server, serve

__all__ = ["ServeError", "Server", "serve"]
