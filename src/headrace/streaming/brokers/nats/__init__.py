"""NATS JetStream: connection, group member and messages."""
