"""Reconciliation: plan, routes, pools, publication, driver. Imports `agents` and below."""
