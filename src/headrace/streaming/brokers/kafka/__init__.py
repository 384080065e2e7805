"""Apache Kafka: client, session, producers and offsets. Imports no sibling."""
