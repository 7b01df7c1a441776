"""A new model in a running replica: under load, refused, broken, and back again."""

import hashlib
import json
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from consumer.adapters.models.manifest import write_manifest
from consumer.adapters.models.model_file import write_model_file
from consumer.bootstrap_model import load_model
from consumer.model_spec import InputSpec, ModelSpec, OutputSpec
from consumer.settings import Settings, load
from tests.answers import Answers
from tests.conftest import Topics
from tests.kafka_broker import Cluster
from tests.kafka_clients import Record, read_to_end, send
from tests.models import tiny_labels, tiny_model
from tests.replica import Replica
from tests.runs import Run

pytestmark = pytest.mark.kafka


@dataclass(frozen=True)
class Version:
    """What settings say of a model, and what it says of images."""

    model: Mapping[str, Any]
    digest: str
    labels_of: Mapping[str, Sequence[tuple[str, float]]]
    """By the SHA-256 of an image's bytes."""

    @classmethod
    def of(cls, photographs: Sequence[Path], folder: Path, **model: Any) -> "Version":
        described = {"name": "tiny", "labels": str(tiny_labels(folder)), "runtime": "tensorflow", **model}
        settings = _settings(folder / "alone.toml", described)
        loaded = load_model(settings)
        found = {}
        for photograph in photographs:
            body = photograph.read_bytes()
            (scores,) = loaded.runtime.infer(loaded.decoder.decode(body).pixels[None])
            best = sorted(range(len(scores)), key=lambda index: -scores[index])[: settings.model.top_k]
            found[hashlib.sha256(body).hexdigest()] = [(loaded.labels.name(each), float(scores[each])) for each in best]
        return cls(described, loaded.runtime.info.digest, found)

    def labelled(self, event: Mapping[str, Any]) -> bool:
        """Whether this is what it says of the event's image."""
        expected = self.labels_of[event["image"]["sha256"]]
        return [label["label"] for label in event["labels"]] == [name for name, _ in expected] and all(
            abs(label["score"] - score) < 1e-4 for label, (_, score) in zip(event["labels"], expected, strict=True)
        )


def _settings(path: Path, model: Mapping[str, Any], **swap: Any) -> Settings:
    lines = []
    for table, values in (("model", model), ("swap", {"watch_interval_ms": 0, "cpu_share": 1.0, **swap})):
        lines += [f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    path.write_text("\n".join(lines) + "\n")
    return load(path)


def _runs(cluster: Cluster, topics: Topics, file: Path, **more: str) -> Replica:
    environment = {"OUZEL_MODEL__RUNTIME": "tensorflow", "OUZEL_MODEL__THREADS": "2", **more}
    return Replica(cluster, topics, settings=environment, arguments=("--settings", str(file)))


def _swaps(replica: Replica, result: str) -> float:
    return replica.metric("ouzel_model_swaps_total", result=result)


def _hang_up(replica: Replica, result: str, timeout_s: float = 60) -> None:
    """SIGHUP, and what comes of it."""
    before = _swaps(replica, result)
    replica.signal(signal.SIGHUP)
    replica.wait_for(lambda: _swaps(replica, result) == before + 1, timeout_s, result)


def _labelling(replica: Replica) -> str:
    _, text = replica.probe("metrics")
    (line,) = [line for line in text.splitlines() if line.startswith("ouzel_model_info{")]
    return line.partition('digest="')[2].partition('"')[0]


@pytest.fixture(scope="module")
def first(photographs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Version:
    return Version.of(photographs, tmp_path_factory.mktemp("first"), source=str(tiny_model()))


def test_a_new_model_goes_live_under_load_and_every_event_has_the_labels_of_its_digest(
    kafka: Cluster, topics: Topics, photographs: list[Path], first: Version, tmp_path: Path
) -> None:
    """It sees images otherwise (a centre crop), so it makes pixels of its own while it is compared."""
    second = Version.of(photographs, tmp_path, source=str(tiny_model()), version="2", crop=0.9)
    assert first.digest != second.digest
    shadow = kafka.create_topic(f"{topics.predictions}.shadow", partitions=2)
    file = tmp_path / "settings.toml"
    swap = {"min_agreement": 0.5, "shadow_images": 60, "shadow_topic": shadow}
    _settings(file, first.model, **swap)
    with Run(kafka, topics, tmp_path) as run, Answers(kafka, topics) as answers:
        with _runs(kafka, topics, file) as replica:
            replica.start()
            replica.wait_for(lambda: replica.said("ouzel "), 30, "its first line")
            replica.signal(signal.SIGHUP)  # long before there is a model to take the place of
            replica.wait_ready()
            replica.wait_for(lambda: replica.said("no new model"), 30, "the answer to it")
            with run.sending(photographs, per_second=60):
                answers.wait(lambda: len(answers.events) > 60, "some by the first model")
                _settings(file, second.model, **swap)
                _hang_up(replica, "swapped")
                assert _labelling(replica) == second.digest
                so_far = len(answers.events)
                answers.wait(lambda: len(answers.events) > so_far + 60, "some by the second one")
            run.healed(within_s=60)
            assert replica.probe("livez")[0] == replica.probe("readyz")[0] == 200
            assert replica.metric("ouzel_shadow_images_total") >= 60
            assert replica.metric("ouzel_swap_state") == 0
            assert replica.terminate() == 0
        summary = run.assert_all_promises_kept(exactly_once=True)
        answers.read_to_end()
    assert summary.letters == 0
    versions = {version.digest: version for version in (first, second)}
    assert {answer.event["model"]["digest"] for answer in answers.events} == versions.keys()
    wrong = [a.event for a in answers.events if not versions[a.event["model"]["digest"]].labelled(a.event)]
    assert wrong == []
    # It can tell: what the other one says of the same image is something else.
    assert not any(versions[first.digest].labelled(a.event) for a in _of(answers, second))

    records = read_to_end(kafka, shadow)
    assert len(records) >= 60
    for record in records:
        event = json.loads(record.value() or b"")
        assert event["model"]["digest"] == second.digest
        assert second.labelled(event)
        assert dict(record.headers() or [])["ce_shadow"] == b"true"
        assert (record.key() or b"").startswith(b"key-")


def _of(answers: Answers, version: Version) -> Iterator[Any]:
    return (answer for answer in answers.events if answer.event["model"]["digest"] == version.digest)


def test_a_model_is_refused_tried_again_when_asked_and_taken_back(
    kafka: Cluster, topics: Topics, photographs: list[Path], first: Version, tmp_path: Path
) -> None:
    """One that disagrees, one that is broken, settings that are wrong; then the same one with a lower bar, and back."""
    other = Version.of(photographs, tmp_path, source=str(tiny_model(seed=8, size=48)), version="2")
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model(), broken)
    graph = broken / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[:-100])
    shadow = kafka.create_topic(f"{topics.predictions}.shadow", partitions=1)
    swap = {"min_agreement": 1.0, "shadow_images": 24, "shadow_topic": shadow}
    file = tmp_path / "settings.toml"
    _settings(file, first.model, **swap)
    with (
        Run(kafka, topics, tmp_path) as run,
        Answers(kafka, topics) as answers,
        _runs(kafka, topics, file) as replica,
    ):
        replica.start().wait_ready()
        kafka.delete_topic(shadow)  # what the new one says can be written nowhere; nobody minds
        with run.sending(photographs, per_second=40):
            _settings(file, other.model, **swap)
            _hang_up(replica, "refused")
            (said,) = [line["message"] for line in replica.log_lines() if "is not taken" in line["message"]]
            assert "first labels the same" in said
            assert "swap.min_agreement is 100.0%" in said

            _settings(file, {**first.model, "source": str(broken)}, **swap)
            _hang_up(replica, "failed")
            file.write_text("[model]\nsauce = 'x'\n")
            _hang_up(replica, "unreachable")
            assert replica.said("model.sauce")
            _settings(file, other.model, **{**swap, "min_agreement": 0.0, "shadow_topic": ""})
            assert _labelling(replica) == first.digest

            _hang_up(replica, "swapped")
            assert _labelling(replica) == other.digest
            assert replica.said("until a restart have changed: swap.shadow_topic")
            so_far = len(answers.events)
            answers.wait(lambda: len(answers.events) > so_far + 40, "some by the other one")
            _settings(file, first.model, **swap)
            _hang_up(replica, "swapped")
            assert replica.said("has labelled here before")
            assert _labelling(replica) == first.digest
        run.healed(within_s=60)
        (last,) = send(kafka, topics.images, [Record(photographs[0].read_bytes())])
        assert first.labelled(answers.to(last).event)
        assert answers.to(last).event["model"]["digest"] == first.digest
        assert replica.terminate() == 0
        answers.read_to_end()
        versions = {version.digest: version for version in (first, other)}
        assert [a.event for a in answers.events if not versions[a.event["model"]["digest"]].labelled(a.event)] == []
        assert any(_of(answers, other))


def test_the_end_of_a_replica_does_not_wait_for_a_new_model(
    kafka: Cluster, topics: Topics, photographs: list[Path], first: Version, tmp_path: Path
) -> None:
    """Nobody sends an image, so that the comparison would go on for ever."""
    file = tmp_path / "settings.toml"
    _settings(file, first.model)
    with _runs(kafka, topics, file) as replica, Answers(kafka, topics) as answers:
        replica.start().wait_ready()
        _settings(file, {**first.model, "source": str(tiny_model(seed=8))})
        replica.signal(signal.SIGHUP)
        replica.wait_for(lambda: replica.metric("ouzel_swap_state") == 2, 60, "shadow")
        (sent,) = send(kafka, topics.images, [Record(photographs[0].read_bytes())])
        assert answers.to(sent).event["model"]["digest"] == first.digest
        assert replica.terminate(timeout_s=20) == 0


def _register(registry: Path, number: int, photographs: Sequence[Path], folder: Path, **model: Any) -> Version:
    """An artifact as a version of a folder of numbered versions, and what it says of images."""
    artifact = registry / str(number)
    shutil.copytree(tiny_model(**model), artifact / "model")
    (artifact / "labels.csv").write_bytes(tiny_labels(folder).read_bytes())
    image = InputSpec("images", "float32", "NHWC", 32, 32)
    output = OutputSpec("scores", "logits" if model.get("logits") else "probabilities", 10)
    spec = ModelSpec("tiny", str(number), "saved_model", image, output, signature="serving_default")
    write_model_file(artifact, spec, provenance={}, metrics={})
    write_manifest(artifact)
    return Version.of(photographs, folder, source=str(artifact), name="", labels="")


def _point(registry: Path, *versions: int) -> None:
    """The alias stands for the first; then come those that it stood for before."""
    fresh = registry / "aliases.new"
    fresh.write_text(json.dumps({"production": [str(each) for each in versions]}))
    fresh.rename(registry / "aliases.json")


def test_replicas_follow_an_alias_of_their_registry(
    kafka: Cluster, topics: Topics, photographs: list[Path], tmp_path: Path
) -> None:
    """By themselves: to a version that agrees, not to one that is cut short, and back when the alias is rolled back."""
    registry = tmp_path / "tiny"
    first = _register(registry, 1, photographs, tmp_path)
    second = _register(registry, 2, photographs, tmp_path, logits=True)
    _register(registry, 3, photographs, tmp_path, seed=8)
    weights = registry / "3" / "model" / "variables" / "variables.data-00000-of-00001"
    weights.write_bytes(weights.read_bytes()[:-1])
    _point(registry, 1)
    file = tmp_path / "settings.toml"
    model = {"source": f"file://{registry}:production", "runtime": "tensorflow"}
    _settings(file, model, shadow_images=40, watch_interval_ms=200)
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    with (
        Run(kafka, topics, tmp_path) as run,
        Answers(kafka, topics) as answers,
        _runs(kafka, topics, file, **cache) as one,
        _runs(kafka, topics, file, **cache) as other,
    ):
        one.start().wait_ready()
        other.start().wait_ready()
        with run.sending(photographs, per_second=60, keys=200):
            _point(registry, 2, 1)
            for replica in (one, other):
                replica.wait_for(lambda replica=replica: _labelling(replica) == second.digest, 60, "the second one")
            _point(registry, 3, 2, 1)
            for replica in (one, other):
                replica.wait_for(lambda replica=replica: _swaps(replica, "failed") >= 1, 60, "a failure")
                assert _labelling(replica) == second.digest
            _point(registry, 1)
            for replica in (one, other):
                replica.wait_for(lambda replica=replica: _labelling(replica) == first.digest, 60, "the first one")
        run.healed(within_s=60)
        assert one.terminate() == other.terminate() == 0
        run.assert_all_promises_kept()
        answers.read_to_end()
    versions = {version.digest: version for version in (first, second)}
    assert {answer.event["model"]["digest"] for answer in answers.events} == versions.keys()
    assert [a.event for a in answers.events if not versions[a.event["model"]["digest"]].labelled(a.event)] == []
    assert answers.letters == []
