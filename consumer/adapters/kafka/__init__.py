"""Apache Kafka by way of librdkafka (confluent-kafka)."""
