"""The Kafka side of the operator's commands: send, tail, offsets, dlq. The service itself uses none of it."""
