"""Apache Pulsar: connection, subscription member, messages. Imports no sibling."""
