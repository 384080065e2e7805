"""Limits that all gateways share, counted in the control plane."""
