"""Rollouts: driver, observation, evidence and status. Imports `kubernetes` and below."""
