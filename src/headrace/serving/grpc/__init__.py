"""gRPC interface of a replica: Envoy's bridge, and a server. Imports no sibling."""
