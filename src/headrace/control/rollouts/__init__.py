"""Rollouts: driver, observation, evidence and status. Imports `desired` and below."""
