"""Pool process, which hosts many models. Imports its siblings `grpc`, `telemetry`."""
