"""Autoscaler: signals, replica counts and resource advice. Imports `desired` and below."""
