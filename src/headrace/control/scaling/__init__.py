"""Autoscaler: replica counts of arms."""
