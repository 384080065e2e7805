"""Process of a control plane: entry, wiring, detached start, backup. Imports `api` and below."""
