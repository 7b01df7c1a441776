"""Header names, in one place: what we read, what we write, and what a dead letter takes off and puts on."""

CONTENT_TYPE = "content-type"
IMAGE_ID = "image-id"
TRACEPARENT = "traceparent"

# On the events of a model that is only compared (`swap.shadow_topic`).
SHADOW = "ce_shadow"

# Where a message came from first, in UTF-8 text. A dead letter carries them, `ouzel dlq replay` sends them along, and
# a replayed message keeps them, so that its event id and `source` are those of the first delivery (I7).
ORIGIN_CLUSTER_ID = "ouzel-origin-cluster-id"
ORIGIN_TOPIC_ID = "ouzel-origin-topic-id"
ORIGIN_TOPIC = "ouzel-origin-topic"
ORIGIN_PARTITION = "ouzel-origin-partition"
ORIGIN_OFFSET = "ouzel-origin-offset"
ORIGIN_TIMESTAMP_MS = "ouzel-origin-timestamp-ms"
ORIGIN_TIMESTAMP_TYPE = "ouzel-origin-timestamp-type"
# Of a message with several records, the one that the letter is of, from 0. With it only that record is labelled.
ORIGIN_RECORD_INDEX = "ouzel-origin-record-index"
REPLAY_COUNT = "ouzel-replay-count"

# On a letter that is too large to carry its value.
ORIGINAL_SIZE_BYTES = "ouzel-original-size-bytes"
ORIGINAL_SHA256 = "ouzel-original-sha256"
ORIGINAL_LEFT_OUT = "ouzel-original-left-out"  # what is missing from the letter: value, headers, key

# Kafka Connect's names for what went wrong.
ERROR_PREFIX = "__connect.errors."
ERROR_TOPIC = ERROR_PREFIX + "topic"
ERROR_PARTITION = ERROR_PREFIX + "partition"
ERROR_OFFSET = ERROR_PREFIX + "offset"
ERROR_CONNECTOR_NAME = ERROR_PREFIX + "connector.name"  # the consumer group
ERROR_TASK_ID = ERROR_PREFIX + "task.id"  # the replica: its host name
ERROR_STAGE = ERROR_PREFIX + "stage"  # parse, fetch, decode, infer, publish
ERROR_CLASS_NAME = ERROR_PREFIX + "class.name"  # the stage's module
ERROR_EXCEPTION_CLASS = ERROR_PREFIX + "exception.class.name"  # a class of consumer.errors, e.g. NotAnImage
ERROR_EXCEPTION_MESSAGE = ERROR_PREFIX + "exception.message"
ERROR_EXCEPTION_STACKTRACE = ERROR_PREFIX + "exception.stacktrace"

# Spring for Apache Kafka's names, a courtesy to JVM shops (`dead_letters.spring_headers`).
SPRING_ORIGINAL_TOPIC = "kafka_dlt-original-topic"
SPRING_ORIGINAL_PARTITION = "kafka_dlt-original-partition"  # int32, big-endian
SPRING_ORIGINAL_OFFSET = "kafka_dlt-original-offset"  # int64, big-endian
SPRING_EXCEPTION_CLASS = "kafka_dlt-exception-fqcn"
SPRING_EXCEPTION_MESSAGE = "kafka_dlt-exception-message"

OURS = ("ouzel-", ERROR_PREFIX, "kafka_dlt-")
"""Prefixes of the headers that we put on; a dead letter takes those of an earlier hop off first."""
