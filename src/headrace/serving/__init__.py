"""The replica process: an HTTP front over the engine."""
