"""Scheduled jobs: plan, scheduler and processes. Imports `desired` and below."""
