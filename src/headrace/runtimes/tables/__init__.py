"""Runtimes of models of tables: scikit-learn and gradient boosting."""
