"""The replica process: an HTTP front over the engine."""

from headrace.serving.replica import EXIT_CANNOT_LISTEN, EXIT_CANNOT_LOAD, run

__all__ = ["EXIT_CANNOT_LISTEN", "EXIT_CANNOT_LOAD", "run"]
