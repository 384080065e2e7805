"""Rollouts as pure functions: traffic, tests, verdicts. Imports `scoring` and below."""
