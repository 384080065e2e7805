"""Counts and sums per key over windows of time. Imports `codecs` and below."""
