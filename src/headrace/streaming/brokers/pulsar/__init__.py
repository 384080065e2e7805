"""Apache Pulsar: connection, subscription member and messages."""
