"""Notification of alerts by webhook, Slack and email. Imports `asgi` and below."""
