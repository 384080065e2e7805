"""Apache Kafka and Apache Pulsar, started for tests marked `jvm`."""
