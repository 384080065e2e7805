"""Commands that start, show, control and simulate rollouts. Imports `base` and below."""
