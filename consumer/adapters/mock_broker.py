"""An embedded Kafka for the demo: librdkafka's mock cluster, which speaks the protocol over real sockets.

It has groups, rebalances and commits. It has no transactions, keeps about 5 MiB a partition and forgets all of it when
it closes: good for a demo, and for nothing else.
"""

from collections.abc import Iterable
from typing import Self

from confluent_kafka import KafkaException, Producer

from consumer.errors import BrokerUnreachable

_ANSWER_S = 10.0


class MockBroker:
    """One broker on a free port of 127.0.0.1, living in this process as long as this object does."""

    def __init__(self) -> None:
        """Start it.

        Raises:
            BrokerUnreachable: it does not answer (no loopback interface, no free port).
        """
        # log_level 4: at 5 and above the mock says at each start that it replaces bootstrap.servers.
        self._host = Producer({"test.mock.num.brokers": 1, "log_level": 4})
        self.bootstrap_servers = self._addresses()

    def _addresses(self) -> str:
        try:
            brokers = self._host.list_topics(timeout=_ANSWER_S).brokers.values()
        except KafkaException as error:
            raise BrokerUnreachable(f"the embedded broker does not answer: {error}") from error
        return ",".join(f"{broker.host}:{broker.port}" for broker in brokers)

    def create_topics(self, names: Iterable[str]) -> None:
        """Make topics, with as many partitions as the mock gives (4). It has no CreateTopics: asking makes them."""
        for name in names:
            topic = self._host.list_topics(name, timeout=_ANSWER_S).topics[name]
            if topic.error is not None:
                raise BrokerUnreachable(f"the embedded broker does not make topic {name}: {topic.error}")

    def close(self) -> None:
        """Stop it; every client loses it at once."""
        del self._host

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
