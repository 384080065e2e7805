"""Commands about model versions and their registry."""
