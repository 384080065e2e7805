"""Commands that run a model over a data set."""
