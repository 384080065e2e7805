"""Metrics, history, alerts and reports."""
