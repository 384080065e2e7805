"""Scheduled jobs: plan, scheduler and processes."""
