"""Replica counts from signals, as pure functions."""
