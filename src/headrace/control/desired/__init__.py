"""Desired state: resolution of specs, differences, changes. Imports `reconcile` and below."""
