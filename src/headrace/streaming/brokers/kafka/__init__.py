"""Apache Kafka: client, consumer session, producers and offsets."""
