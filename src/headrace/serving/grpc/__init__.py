"""gRPC of a replica: over Envoy's bridge, and a server of its own."""
