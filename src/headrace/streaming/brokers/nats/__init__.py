"""NATS JetStream: connection, group member and messages. Imports no sibling."""
