"""Engines of jobs on other machines. Imports its sibling `sources`."""
