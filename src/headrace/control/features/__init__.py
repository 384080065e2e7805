"""Features: materialization and skew."""
