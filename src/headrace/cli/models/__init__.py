"""Commands for model versions and their registry. Imports `base` and below."""
