"""Materialization and skew checks of features. Imports `desired` and below."""
