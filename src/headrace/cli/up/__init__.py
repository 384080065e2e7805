"""Commands that start, configure and stop a system. Imports `base` and below."""
