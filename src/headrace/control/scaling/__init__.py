"""Autoscaler: signals, replica counts and resource advice. Imports `kubernetes` and below."""
