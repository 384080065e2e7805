"""Pool process that hosts many models. Imports its siblings `grpc`, `telemetry`."""
