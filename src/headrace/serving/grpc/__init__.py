"""gRPC of a replica: over Envoy's bridge, and a separate server."""
