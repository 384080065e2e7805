"""The spec file, `headrace.yaml`: its parts, its parser and its checks. Imports `core` only."""
