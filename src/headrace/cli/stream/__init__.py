"""Commands that run and control streams. Imports `base` and below."""
