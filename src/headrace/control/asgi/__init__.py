"""ASGI types, request guards, HTTP server with bounds. Imports `base` and below."""
