"""Gateways on other hosts: bundles, reports and sync status. Imports `gateway` and below."""
