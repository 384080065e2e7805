"""Rate limits that all gateways share. Imports `asgi` and below."""
