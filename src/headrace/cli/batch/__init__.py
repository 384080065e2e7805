"""Commands that run a model over a data set and control jobs. Imports `base` and below."""
