"""What all tests share: a real Kafka, topics of one's own, photographs, and the rule that CI skips nothing."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import pytest

from tests.kafka_broker import Cluster, KafkaBroker, KafkaUnavailable
from tests.kafka_clients import unique
from tests.schema_registry import SchemaRegistry

ALLOWED_SKIPS = ("bird data", "the platform has no")
"""How the reason of a skip begins that CI accepts: data that is not part of the repository, and rights over the machine
(network namespaces, mounts) that a runner may not have."""

_in_ci = os.environ.get("CI", "").lower() == "true"
_missing_kafka: list[str] = []  # why, said once at the end


def pytest_configure() -> None:
    """Children that tests send a Ctrl-C inherit how it is treated here; in the background of a script it is ignored."""
    hypothesis.settings.register_profile("ouzel", deadline=None)  # a deadline is an assertion on timing
    hypothesis.settings.load_profile("ouzel")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# --- CI skips nothing ----------------------------------------------------------------------------------------------


def _skip_reason(report: Any) -> str | None:
    if not report.skipped or hasattr(report, "wasxfail"):
        return None
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ")


def _fail_a_skip(report: Any) -> None:
    reason = _skip_reason(report)
    if _in_ci and reason is not None and not reason.startswith(ALLOWED_SKIPS):
        report.outcome = "failed"
        report.longrepr = f"skipped, and with CI=true a skip is a failure: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    _fail_a_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    report = yield
    _fail_a_skip(report)
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for reason in _missing_kafka:
        terminalreporter.write_line(f"!!! NO KAFKA: every test marked `kafka` was skipped ({reason})", red=True)


# --- Kafka ---------------------------------------------------------------------------------------------------------


T = TypeVar("T")


def or_skip(make: Callable[[], T]) -> T:
    """What needs the jars of Apache Kafka; without them its tests are skipped."""
    try:
        return make()
    except KafkaUnavailable as error:
        why = f"{error}: {error.remedy}, in OUZEL_TEST_BOOTSTRAP_SERVERS"
        if why not in _missing_kafka:
            _missing_kafka.append(why)
        pytest.skip(f"no Kafka: {why}")


@pytest.fixture(scope="session")
def kafka() -> Iterator[Cluster]:
    """The cluster that tests share: our own broker, or the one of OUZEL_TEST_BOOTSTRAP_SERVERS."""
    external = os.environ.get("OUZEL_TEST_BOOTSTRAP_SERVERS")
    if external:
        yield Cluster(external)
        return
    broker = or_skip(lambda: KafkaBroker(in_memory=True))
    with broker:
        yield broker


@pytest.fixture
def broker(kafka: Cluster) -> Iterator[KafkaBroker]:
    """The shared broker, for tests that stop, kill or pause it; it runs again when the test is over."""
    if not isinstance(kafka, KafkaBroker):
        pytest.skip("OUZEL_TEST_BOOTSTRAP_SERVERS: this test stops brokers, and that cluster is not ours to stop")
    yield kafka
    kafka.ensure_running()


@pytest.fixture(scope="session")
def secure_broker() -> Iterator[KafkaBroker]:
    """A second broker of our own that asks for a password and refuses what no ACL allows; its user is `ouzel`."""
    with or_skip(lambda: KafkaBroker(secure=True, in_memory=True)) as broker:
        yield broker


@pytest.fixture(scope="session")
def schema_registry() -> Iterator[SchemaRegistry]:
    """A real schema registry, in memory, that all tests share: give subjects names of one's own."""
    try:
        registry = SchemaRegistry()
    except KafkaUnavailable as error:
        pytest.skip(f"no schema registry: {error}")
    with registry:
        yield registry


@dataclass(frozen=True, slots=True)
class Topics:
    """Topics and a group that only one test uses."""

    images: str
    predictions: str
    dead_letters: str
    group: str
    partitions: int


MakeTopics = Callable[..., Topics]


@pytest.fixture
def make_topics(kafka: Cluster) -> Iterator[MakeTopics]:
    """Makes topics: `make_topics(partitions=3, images_config={}, predictions_config={}, dead_letters_config={},
    cluster=None)`."""
    yield from _topic_maker(kafka)


@pytest.fixture(scope="module")
def make_module_topics(kafka: Cluster) -> Iterator[MakeTopics]:
    """`make_topics` for what the tests of a module share."""
    yield from _topic_maker(kafka)


def _topic_maker(kafka: Cluster) -> Iterator[MakeTopics]:
    made: list[tuple[Cluster, str]] = []

    def make(
        *,
        partitions: int = 3,
        images_config: dict[str, str] | None = None,
        predictions_config: dict[str, str] | None = None,
        dead_letters_config: dict[str, str] | None = None,
        cluster: Cluster | None = None,
    ) -> Topics:
        where = cluster or kafka
        name = unique("images")
        topics = Topics(name, name.replace("images", "predictions"), f"{name}.dlq", unique("group"), partitions)
        configs = {
            topics.images: images_config,
            topics.predictions: predictions_config,
            topics.dead_letters: dead_letters_config,
        }
        where.create_topics(configs, partitions=partitions)
        made.extend((where, topic) for topic in configs)
        return topics

    yield make
    for where, topic in made:
        if not isinstance(where, KafkaBroker):  # our own broker's data goes away with it
            where.delete_topic(topic)


@pytest.fixture
def topics(make_topics: MakeTopics) -> Topics:
    """Three partitions of images, predictions and dead letters."""
    return make_topics()


# --- images --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A dozen small JPEG files: cuts of the real photographs that the package carries."""
    from PIL import Image

    folder = Path(__file__).resolve().parent.parent / "consumer" / "data" / "photographs"
    found = sorted(folder.glob("*.jpg"))
    assert found, f"no photographs in {folder}"
    target = tmp_path_factory.mktemp("photographs")
    paths = []
    for number in range(12):
        inset = 8 * (number // len(found))  # another cut of the same photograph: other bytes, same motif
        with Image.open(found[number % len(found)]) as whole:
            picture = whole.convert("RGB").crop((inset, inset, whole.width - inset, whole.height - inset))
        picture.thumbnail((256, 256))
        paths.append(target / f"photograph-{number:02d}.jpg")
        picture.save(paths[-1], quality=85)
    return paths
