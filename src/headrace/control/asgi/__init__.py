"""ASGI types, guards of requests, and the HTTP server with bounded connections."""
