"""Runtimes of SavedModels and TFLite. Imports its siblings `rows`, `tables`."""
