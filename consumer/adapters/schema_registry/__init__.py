"""Schema registries that speak Confluent's API: Avro and Protobuf in and out. Needs the extra `registry`."""
