"""Materialization and skew checks of features. Imports `kubernetes` and below."""
