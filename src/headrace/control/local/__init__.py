"""Replicas that are processes of this machine."""
