"""Batch inference over data sets: resumable, scheduled. Imports `scoring` and below."""
