"""Children of a run: what they are told of the settings, and what they answer."""

from pathlib import Path

import pytest

from consumer.bench.broker import Broker
from consumer.bench.children import asked, environment
from consumer.bench.kafka_jars import KafkaUnavailable, fetch_jars, find_java
from consumer.bench.usage import broker_process, check_extra
from consumer.errors import BrokerUnreachable, CommandRefused, Fatal, SettingsError
from consumer.settings import load


def test_the_users_settings_reach_a_child_and_the_runs_own_win(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OUZEL_BATCH__MAX_SIZE", "4")
    monkeypatch.setenv("ouzel_kafka__group_id", "mine")
    monkeypatch.setenv("OUZEL_KAFKA__CLIENT__SECURITY_PROTOCOL", "SASL_SSL")
    broker = Broker("kafka", "127.0.0.1:1", 1, "a broker")
    given = environment({**broker.overrides, "kafka.group_id": "the-runs", "kafka.input_topics": '["a","b"]'})
    for name in ("OUZEL_BATCH__MAX_SIZE", "ouzel_kafka__group_id", "OUZEL_KAFKA__CLIENT__SECURITY_PROTOCOL"):
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = load()
    assert settings.batch.max_size == 4
    assert settings.kafka.group_id == "the-runs"
    assert settings.kafka.input_topics == ["a", "b"]
    assert settings.kafka.bootstrap_servers == "127.0.0.1:1"
    assert settings.kafka.client["security.protocol"] == "PLAINTEXT"


def test_a_broker_that_is_given_keeps_the_users_security() -> None:
    assert Broker("given", "kafka:9092", None, "").overrides == {"kafka.bootstrap_servers": "kafka:9092"}


def test_an_error_of_ours_comes_out_of_a_child_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    program = tmp_path / "refusing.py"
    program.write_text(
        "from consumer.bench.children import answer_questions\n"
        "from consumer.errors import BrokerUnreachable\n"
        "def answer(asked):\n"
        "    print('chatter of a library')\n"
        "    if asked['ask'] == 'fail':\n"
        "        raise BrokerUnreachable('nobody there', remedy='look')\n"
        "    return {'got': asked['ask']}\n"
        "answer_questions(answer)\n"
    )
    with asked("refuser", program.stem, [], log=tmp_path / "log", overrides={}) as child:
        assert child.ask({"ask": "this"}) == {"got": "this"}
        with pytest.raises(BrokerUnreachable, match="nobody there") as caught:
            child.ask({"ask": "fail"})
        assert caught.value.remedy == "look"
        assert child.ask({"ask": "that"}) == {"got": "that"}


def test_a_child_that_ends_is_told_of_with_the_end_of_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    program = tmp_path / "ending.py"
    program.write_text("import sys\nsys.stdin.readline()\nsys.exit('a last word')\n")
    with (
        asked("ender", program.stem, [], log=tmp_path / "log", overrides={}) as child,
        pytest.raises(Fatal, match="a last word"),
    ):
        child.ask({"ask": "anything"})


def test_without_java_or_maven_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(KafkaUnavailable, match="no Java") as java:
        find_java()
    assert "17" in java.value.remedy
    with pytest.raises(KafkaUnavailable, match="no Maven") as maven:
        fetch_jars(tmp_path / "jars")
    assert "mvn" in maven.value.remedy
    assert java.value.exit_code == maven.value.exit_code == 5


def test_without_psutil_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumer.bench.usage.missing", lambda *_modules: [])
    check_extra()
    monkeypatch.setattr("consumer.bench.usage.missing", lambda *modules: list(modules))
    with pytest.raises(SettingsError, match="psutil") as caught:
        check_extra()
    assert caught.value.remedy == "pip install '.[bench]'"


def test_a_broker_process_that_is_not_there_is_refused() -> None:
    with pytest.raises(CommandRefused, match="--broker-pid 999999999"):
        broker_process(999_999_999)
