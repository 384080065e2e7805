"""Run one batch with one kind of model."""
