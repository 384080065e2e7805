"""Metrics, samples and reports of a replica."""
