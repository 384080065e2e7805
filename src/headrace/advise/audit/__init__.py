"""Audit of a system: facts, checks and reports. Imports its sibling `inventory`."""
