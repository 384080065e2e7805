"""Rollouts, as pure functions of what was counted and of `now`: traffic plans, tests, verdicts."""
