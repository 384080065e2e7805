"""Rollouts under way: their driver, evidence and status."""
