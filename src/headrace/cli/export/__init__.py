"""Commands that write configuration for other programs. Imports `base` and below."""
