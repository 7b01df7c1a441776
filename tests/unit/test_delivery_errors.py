"""What a record's refusal means, and what is to be done about it."""

import pytest
from confluent_kafka import KafkaError

from consumer.adapters.kafka.translate import delivery_error
from consumer.errors import OutputRefused


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (KafkaError.INVALID_TIMESTAMP, "set this machine's clock"),
        (KafkaError.INVALID_RECORD, "cleanup.policy=delete"),
        (KafkaError.POLICY_VIOLATION, "cleanup.policy=delete"),
    ],
)
def test_a_record_that_is_refused_for_good_says_what_to_change(code: int, remedy: str) -> None:
    error = delivery_error(KafkaError(code), "predictions")
    assert isinstance(error, OutputRefused)
    assert error.exit_code == 8
    assert remedy in error.remedy
