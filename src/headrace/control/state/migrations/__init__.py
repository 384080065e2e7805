"""The way from any older schema of the state to the newest, one step per module."""
