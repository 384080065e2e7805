"""Runtimes of tabular models: scikit-learn, gradient boosting. Imports no sibling."""
