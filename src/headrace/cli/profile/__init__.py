"""Commands that profile models and plan capacity. Imports `base` and below."""
