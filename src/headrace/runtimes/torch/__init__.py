"""Runtimes of TorchScript and exported programs. Imports its siblings `rows`, `tables`."""
