"""Notification of alerts by webhook, Slack and email."""
