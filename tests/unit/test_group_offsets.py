"""What `ouzel offsets` does about a coordinator that is away, unknown errors, and notes of commits."""

import pytest
from confluent_kafka import KafkaError, KafkaException

from consumer.adapters.kafka_admin import KafkaAdmin
from consumer.adapters.kafka_tools.clients import (
    Complaints,
    open_admin,
    open_producer,
    open_reader,
    translated,
    translated_write,
)
from consumer.adapters.kafka_tools.group_offsets import GroupOffsets, PartitionState
from consumer.adapters.librdkafka import check_properties, until_coordinated
from consumer.commands.offsets import _commits
from consumer.errors import Fatal, SettingsError
from consumer.messages import CommitPoint, Partition
from consumer.stages.start import Note

A = Partition("images", 0)
AWAY = ("NOT_COORDINATOR", "COORDINATOR_NOT_AVAILABLE", "COORDINATOR_LOAD_IN_PROGRESS")


class Group:
    """Answers after some refusals."""

    def __init__(self, *refusals: str) -> None:
        self._refusals = list(refusals)
        self.waits: list[float] = []

    def ask(self) -> str:
        if self._refusals:
            raise KafkaException(KafkaError(getattr(KafkaError, self._refusals.pop(0))))
        return "empty"


def test_a_group_is_asked_again_until_its_coordinator_is_there() -> None:
    group = Group(*AWAY)
    assert until_coordinated(group.ask, timeout_s=60, wait=group.waits.append) == "empty"
    assert len(group.waits) == 3


def test_a_coordinator_that_stays_away_is_told_after_the_time_out() -> None:
    group = Group(*AWAY)
    with pytest.raises(KafkaException):
        until_coordinated(group.ask, timeout_s=0, wait=group.waits.append)


def test_another_refusal_is_told_at_once() -> None:
    group = Group("GROUP_AUTHORIZATION_FAILED")
    with pytest.raises(KafkaException):
        until_coordinated(group.ask, timeout_s=60, wait=group.waits.append)
    assert group.waits == []


def test_an_error_that_nobody_expected_is_no_refusal_of_the_output_and_says_what_to_do() -> None:
    error = translated(KafkaError(KafkaError.INVALID_REQUEST), "reading images.dlq")
    assert type(error) is Fatal
    assert error.exit_code == 70
    assert error.remedy


def test_an_unexpected_error_of_a_write_is_a_refusal_of_the_output_and_an_expected_one_itself() -> None:
    assert translated_write(KafkaError(KafkaError.INVALID_REQUEST), "sending letters back").exit_code == 8
    assert translated_write(KafkaError(KafkaError._TRANSPORT), "sending letters back").exit_code == 5


def _state(note: str) -> PartitionState:
    return PartitionState(partition=A, earliest=0, end=10, committed=7, note=note, member=None)


def test_a_reset_keeps_the_note_but_for_the_trip() -> None:
    note = Note("id-1", 2, trip="system").dump()
    assert _commits([_state(note)], {A: 3}) == {A: CommitPoint(3, Note("id-1", 2).dump())}


@pytest.mark.parametrize("note", ["", "another client's"])
def test_a_reset_keeps_no_note_that_is_not_ours(note: str) -> None:
    assert _commits([_state(note)], {A: 3}) == {A: CommitPoint(3, "")}


def test_offsets_say_nothing_of_their_own_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    offsets = GroupOffsets({"bootstrap.servers": "127.0.0.1:1"}, "ouzel", timeout_s=0.5)
    with pytest.raises(Fatal):
        offsets.describe(["images"])
    with pytest.raises(Fatal):
        offsets._committed([A])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["error_cb", "default.topic.config"])
def test_a_property_that_the_binding_chokes_on_is_an_error_of_the_settings(name: str) -> None:
    wrong = {name: "x"}
    clients = dict.fromkeys(("consumer", "producer", "admin"), wrong)
    with pytest.raises(SettingsError):
        check_properties(clients, {})


def test_every_client_tells_a_property_of_the_wrong_kind_as_an_error_of_the_settings() -> None:
    wrong = {"default.topic.config": "x"}
    for opened in (open_producer, open_reader, open_admin):
        with pytest.raises(SettingsError):
            opened(wrong, Complaints())
    with pytest.raises(SettingsError):
        KafkaAdmin(wrong, timeout_s=1)
