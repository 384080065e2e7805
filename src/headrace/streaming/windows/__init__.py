"""Counts and sums per key over windows of time, stored with the offset that they include."""
