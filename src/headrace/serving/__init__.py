"""Replica process: an HTTP front over the engine. Imports `scoring` and below."""
