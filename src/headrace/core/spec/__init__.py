"""Spec file `headrace.yaml`: models, parser and checks. Imports no sibling."""
