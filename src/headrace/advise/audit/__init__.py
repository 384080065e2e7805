"""Audit of a system: facts, checks and reports."""
