"""Metrics, samples and reports of a replica. Imports no sibling."""
