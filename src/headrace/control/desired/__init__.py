"""Desired state: resolution of specs, differences and changes."""
