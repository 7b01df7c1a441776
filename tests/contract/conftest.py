"""Fixtures of the contract suites."""

from tests.contract.kafka_places import mock_cluster, place

__all__ = ["mock_cluster", "place"]
