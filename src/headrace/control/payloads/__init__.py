"""Payload log: sampled requests and answers, in files. Imports `asgi` and below."""
