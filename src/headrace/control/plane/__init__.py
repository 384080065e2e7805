"""The services of one control plane together, with their status and metrics."""
