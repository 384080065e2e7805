"""Counts and sums per key over windows of time, kept beside the offset that they are of."""
