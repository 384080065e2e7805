"""Replica process: an HTTP server over the engine. Imports `scoring` and below."""
