"""Services of one control plane, with their status and metrics. Imports `telemetry` and below."""
