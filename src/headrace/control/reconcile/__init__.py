"""Reconciliation of observed and desired state."""
