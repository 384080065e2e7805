"""Replicas as processes on this machine: driver and sandbox. Imports `asgi` and below."""
