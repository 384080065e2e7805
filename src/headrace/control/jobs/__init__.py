"""Scheduled jobs: plan, scheduler and processes. Imports `kubernetes` and below."""
