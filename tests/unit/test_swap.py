"""How a new model comes to label: every step's failure leaves the running one, and is said. Fakes, no waiting."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loguru import logger
from prometheus_client import CollectorRegistry

from consumer import swap
from consumer.errors import CacheFull, ModelCorrupt, ModelSourceUnreachable, SettingsError
from consumer.memory import available_bytes
from consumer.messages import (
    Batch,
    CloseReason,
    DecodedImage,
    Delivery,
    ImageFacts,
    ImageJob,
    Label,
    Labelled,
    Lease,
    Partition,
    Rejected,
)
from consumer.metrics import Metrics
from consumer.observer import Observer
from consumer.stages.events import EventContext
from consumer.stages.intake import ByteBudget
from consumer.stages.serving import Serving
from consumer.stages.shadow import HandOff, Sample, ShadowComparison, Verdict, rest_s
from consumer.stages.shadow_events import ShadowEvents
from consumer.swap import Obtained, Swapper, SwapRules, Wanted
from tests.fakes import FakeClock, FakeRuntime, FakeSink, fake_digest, fake_serving
from tests.processes import wait_until

LEASE = Lease(Partition("images", 0), epoch=1, topic_id="")
RULES = SwapRules(watch_interval_s=0.0, min_agreement=0.75, shadow_images=8, cpu_share=1.0)


class FakeFlow:
    """Labels what a test gives it, and offers it to the hand-off, as the flow does."""

    def __init__(self, serving: Serving, hand_off: HandOff) -> None:
        self.serving = serving
        self._hand_off = hand_off

    def swap(self, serving: Serving) -> None:
        self.serving.close()
        self.serving = serving

    def take_largest_delay_s(self) -> float:
        return 0.123

    def label(self, *values: int) -> None:
        """A batch of these images."""
        images = tuple(self._image(value) for value in values)
        outcomes = self.serving.inference(Batch(images, CloseReason.SIZE))
        self._hand_off.offer(images, outcomes)

    def sample(self, *values: int) -> Sample:
        """Of such a batch, offered before bytes were to be kept."""
        images = tuple(replace(self._image(value), body=None) for value in values)
        outcomes = self.serving.inference(Batch(images, CloseReason.SIZE))
        return Sample(
            tuple((image, each) for image, each in zip(images, outcomes, strict=True) if isinstance(each, Labelled))
        )

    def _image(self, value: int) -> DecodedImage:
        body = b"%d" % value
        side = self.serving.decodes_as[0] if isinstance(self.serving.decodes_as, tuple) else 2
        job = ImageJob(Delivery(LEASE, value, body, key=b"key"), str(value))
        keep = self._hand_off.keeps(len(body))
        pixels = np.full((side, side, 3), value, np.uint8)
        return DecodedImage(job, pixels, ImageFacts(4, 4, "PNG", "", 1), 0.0, 0.0, 999.0, body=body if keep else None)


class Rig:
    """A swapper whose source stands for what `wants` says; `said` are its lines."""

    def __init__(self, **options: Any) -> None:
        self.clock = FakeClock()
        self.metrics = Metrics(CollectorRegistry())
        observer = Observer(self.metrics, self.clock)
        self.budget = ByteBudget(1_000_000)
        self.hand_off = HandOff(self.budget)
        self.first = FakeRuntime("1")
        self.flow = FakeFlow(fake_serving(self.first), self.hand_off)
        observer.serves(self.first.info)
        self.rules = RULES
        self.left_bytes: int | None = None
        self.shadowed: list[Labelled] = []
        self.said: list[str] = []
        self._sink = logger.add(lambda message: self.said.append(message.record["message"]), level="INFO")
        self.looks = 0
        self.loaded: list[str] = []
        self.loaded_on: list[str] = []
        self.released: list[str] = []
        self.unreachable: Exception | None = None
        self.wants(self.first)
        self.swapper = Swapper(
            self.flow,
            self.hand_off,
            look=self._look,
            rules=self.rules,
            available_bytes=lambda: self.left_bytes,
            clock=self.clock,
            observer=observer,
            shadow_event=self.shadowed.append,
            **{
                "running_key": "1",
                "shadow_decode_bytes": 1_000,
                "infer_deadline_s": 60.0,
                **options,
            },
        )
        self.swapper.start()

    def wants(self, runtime: FakeRuntime, **more: Any) -> Serving:
        """The source stands for this one from now on."""
        version = runtime.info.version
        serving = fake_serving(runtime)

        def load(on: str) -> Serving:
            self.loaded.append(version)
            self.loaded_on.append(on)
            return serving

        obtained = Obtained(
            runtime.info.digest, f"fake {version}", 100, load, release=lambda: self.released.append(version)
        )
        obtain: Callable[[], Obtained] = more.pop("obtain", lambda: obtained)
        self.wanted = Wanted(version, f"source ({version})", self.rules, obtain, **more)
        return serving

    def _look(self) -> Wanted:
        self.looks += 1
        if self.unreachable is not None:
            raise self.unreachable
        return replace(self.wanted, rules=self.rules)

    # --- what tests do ----------------------------------------------------------------------------------------------

    def until(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(condition, timeout_s=8, what=f"{what}; said: {self.said}", interval_s=0.002)

    def count(self, result: str) -> float:
        return self.metrics.registry.get_sample_value("ouzel_model_swaps_total", {"result": result}) or 0.0

    def tell(self, result: str) -> None:
        """SIGHUP, and what comes of it."""
        before = self.count(result)
        self.swapper.tell()
        self.ends(result, before)

    def tell_moved_on(self) -> None:
        """SIGHUP while one is compared, which the source does not stand for any more."""
        before = self.count("superseded")
        self.swapper.tell()
        self.until(lambda: self.count("superseded") == before + 1, "superseded")

    def ends(self, result: str, before: float = 0.0) -> None:
        self.until(lambda: self.count(result) == before + 1, result)
        self.until(lambda: self.state == 0, "the end")

    @property
    def state(self) -> float | None:
        return self.metrics.registry.get_sample_value("ouzel_swap_state")

    def shadow(self, *batches: tuple[int, ...]) -> None:
        """Live batches, each offered until it is taken."""
        for batch in batches:
            self.until(lambda: self.hand_off._deliver is not None, "a batch to be wanted")
            self.flow.label(*batch)

    def labels(self, version: str) -> bool:
        """Whether this version labels, alone, and says so."""
        info = {"name": "fake", "version": version, "digest": fake_digest(version), "runtime": "fake"}
        shown = self.metrics.registry.get_sample_value("ouzel_model_info", {**info, "precision": "f32"})
        return self.flow.serving.info.version == version and shown == 1

    def close(self) -> None:
        self.swapper.stop()
        assert not self.swapper._thread.is_alive()
        logger.remove(self._sink)


@pytest.fixture
def make_rig() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(**options: Any) -> Rig:
        made.append(Rig(**options))
        return made[-1]

    yield make
    for rig in made:
        rig.close()
        rig.until(lambda rig=rig: rig.budget.used_bytes == 0, "all samples to be let go of")  # type: ignore[misc]


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig()


# --- it goes live ---------------------------------------------------------------------------------------------------


def test_a_version_that_agrees_on_enough_live_images_goes_live(rig: Rig) -> None:
    second = FakeRuntime("2")
    second.others = {7}
    rig.wants(second)
    rig.swapper.tell()
    rig.shadow((1, 2, 3, 4), (5, 6, 7, 0))
    rig.ends("swapped")
    assert rig.labels("2")
    assert second.warmed == [4, 3, 2, 1]
    assert rig.first.closed == 1
    assert [outcome.model.version for outcome in rig.shadowed] == ["2"] * 8
    assert any("7 of 8 first labels the same (87.5%)" in line and "123 ms" in line for line in rig.said)
    assert rig.metrics.registry.get_sample_value("ouzel_shadow_images_total", {"first_label": "other"}) == 1
    assert rig.metrics.registry.get_sample_value("ouzel_shadow_agreement") == 0.875


def test_labels_are_compared_by_name_and_none_is_a_label_too() -> None:
    def labelled(index: int, *names: str) -> Labelled:
        labels = tuple(Label(index, name, 0.9) for name in names)
        job = ImageJob(Delivery(LEASE, 0, b""), "0")
        return Labelled(job, labels, ImageFacts(1, 1, "PNG", ""), FakeRuntime.info, {})

    comparison = ShadowComparison(images=10, min_agreement=0.5)
    assert comparison.add(labelled(1, "finch", "wren"), labelled(2, "finch"))
    assert not comparison.add(labelled(1, "finch"), labelled(1, "wren"))
    assert comparison.add(labelled(1), labelled(1))
    assert not comparison.add(labelled(1, "finch"), labelled(1))
    assert comparison.agreement == 0.5


@pytest.mark.parametrize(
    ("same", "other", "verdict"),
    [
        (7, 0, Verdict.OPEN),
        (6, 2, Verdict.AGREES),
        (5, 3, Verdict.DISAGREES),
        (0, 2, Verdict.OPEN),
        (0, 3, Verdict.DISAGREES),  # five more cannot mend it
    ],
)
def test_a_comparison_ends_as_soon_as_nothing_can_change_it(same: int, other: int, verdict: Verdict) -> None:
    comparison = ShadowComparison(images=8, min_agreement=0.75)
    comparison.same, comparison.compared = same, same + other
    assert comparison.verdict is verdict


def test_its_own_pixels_are_made_where_it_sees_images_otherwise(rig: Rig) -> None:
    second = FakeRuntime("2", side=4)
    rig.wants(second)
    rig.swapper.tell()
    rig.shadow((1, 2, 3, 4), (5, 6, 7, 0))
    rig.ends("swapped")
    assert second.calls[-1] == [5, 6, 7, 0]
    assert rig.flow.serving.inference.image_bytes == 4 * 4 * 3


def test_images_too_large_to_be_decoded_twice_are_passed_by(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(shadow_decode_bytes=1)
    second = FakeRuntime("2", side=4)
    rig.wants(second)
    rig.swapper.tell()
    rig.until(lambda: rig.state == 2, "shadow")
    rig.until(lambda: rig.hand_off._deliver is not None, "a batch to be wanted")
    rig.flow.label(11, 12)
    assert rig.hand_off._deliver is not None
    rig.flow.label(21, 1)  # the latter alone
    rig.until(lambda: len(rig.shadowed) == 1, "one to be compared")
    assert rig.shadowed[0].job.image_id == "1"


def test_with_no_images_to_compare_it_goes_live_at_once(rig: Rig) -> None:
    rig.rules = replace(RULES, shadow_images=0)
    rig.wants(FakeRuntime("2"))
    rig.tell("swapped")
    assert rig.labels("2")
    assert any("was not compared" in line for line in rig.said)


def test_a_version_that_has_labelled_here_goes_live_again_at_once(rig: Rig) -> None:
    rig.rules = replace(RULES, shadow_images=0)
    rig.wants(FakeRuntime("2"))
    rig.tell("swapped")
    rig.rules = RULES
    rig.wants(FakeRuntime("1"))
    rig.tell("swapped")
    assert rig.labels("1")
    assert any("it has labelled here before" in line for line in rig.said)


def test_the_source_is_looked_at_every_interval(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    rig.rules = replace(RULES, watch_interval_s=0.001, shadow_images=0)
    rig.swapper.tell()  # the interval is read with the settings
    rig.until(lambda: rig.looks >= 1, "a look")
    rig.wants(FakeRuntime("2"))
    for _ in range(1_000):
        rig.clock.advance(0.002)
        if rig.count("swapped"):
            break
        threading.Event().wait(0.005)
    assert rig.labels("2")


# --- it does not ----------------------------------------------------------------------------------------------------


def test_a_version_that_disagrees_is_refused_with_the_figures_and_tried_again_only_when_told(rig: Rig) -> None:
    second = FakeRuntime("2")
    second.others = {1, 2, 3}
    serving = rig.wants(second)
    rig.swapper.tell()
    rig.shadow((1, 2, 3, 4))
    rig.ends("refused")
    assert rig.labels("1")
    assert serving.inference.info.version == "2"
    assert second.closed == 1
    (said,) = [line for line in rig.said if "is not taken" in line]
    assert "1 of 4 first labels the same (25.0%)" in said
    assert "swap.min_agreement is 75.0%" in said
    assert not rig.swapper._is_new(rig.wanted, told=False)
    rig.rules = replace(RULES, shadow_images=0)
    rig.tell("swapped")
    assert rig.loaded == ["2", "2"]


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ModelCorrupt("saved_model.pb: not the bytes of its manifest", remedy="pull it again"), False),
        (ModelSourceUnreachable("the registry does not answer"), True),
        (OSError(28, "No space left on device"), True),
        (CacheFull("the disk of the model cache is full", remedy="make room"), True),
    ],
)
def test_a_version_that_cannot_be_had_is_said_once_and_the_running_one_stays(
    rig: Rig, error: Exception, again: bool
) -> None:
    tries = []

    def obtain() -> Obtained:
        tries.append(1)
        raise error

    rig.wants(FakeRuntime("2"), obtain=obtain)
    rig.tell("failed")
    rig.swapper._follow(told=False)
    assert len(tries) == 1 + again
    assert rig.labels("1")
    (said,) = [line for line in rig.said if "is not taken" in line]
    assert str(error) in said
    assert "pull it again" in said or not isinstance(error, ModelCorrupt)


def test_a_registry_that_does_not_answer_is_said_once(rig: Rig) -> None:
    rig.unreachable = SettingsError("model.source: is wrong")
    rig.tell("unreachable")
    rig.swapper._follow(told=False)
    assert len([line for line in rig.said if "cannot be told" in line]) == 1
    assert rig.labels("1")


def test_it_is_loaded_on_the_runtime_that_labels_now(rig: Rig) -> None:
    rig.rules = replace(RULES, shadow_images=0)
    rig.first.info = replace(rig.first.info, runtime="litert")
    rig.wants(FakeRuntime("2"))
    rig.tell("swapped")
    assert rig.loaded_on == ["litert"]


def test_a_refused_model_that_cannot_be_closed_costs_no_further_swap(rig: Rig) -> None:
    second = FakeRuntime("2")
    second.warm_up = lambda _sizes: int("warm")  # type: ignore[method-assign,assignment]
    second.close = lambda: 1 / 0  # type: ignore[method-assign,assignment]
    rig.wants(second)
    rig.tell("failed")
    assert any("model fake 2 is done, and its model cannot be freed" in line for line in rig.said)
    assert any("is not taken: ValueError" in line for line in rig.said)
    rig.rules = replace(RULES, shadow_images=0)
    rig.wants(FakeRuntime("3"))
    rig.tell("swapped")
    assert rig.labels("3")


def test_a_defect_of_the_swap_itself_is_said_and_the_next_look_is_made(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.rules = replace(RULES, shadow_images=0)
    with monkeypatch.context() as patch:
        patch.setattr(rig.flow, "swap", lambda _serving: 1 / 0)
        rig.wants(FakeRuntime("2"))
        rig.tell("failed")
    assert rig.labels("1")
    assert any("cannot be followed: ZeroDivisionError" in line for line in rig.said)
    rig.tell("swapped")
    assert rig.labels("2")


def test_without_the_memory_for_both_it_is_not_loaded(rig: Rig) -> None:
    rig.left_bytes = 99
    rig.wants(FakeRuntime("2"))
    rig.tell("no_memory")
    assert (rig.loaded, rig.released) == ([], ["2"])
    rig.left_bytes, rig.rules = 100, replace(RULES, shadow_images=0)
    rig.tell("swapped")


def test_the_model_that_labels_already_is_not_loaded_again(rig: Rig) -> None:
    rig.wanted = replace(rig.wanted, key="the same under another name")
    rig.swapper.tell()
    rig.until(lambda: any("no new model" in line for line in rig.said), "a line")
    rig.wanted = replace(rig.wanted, key="a third name", digest=rig.first.info.digest)
    rig.said.clear()
    rig.swapper.tell()
    rig.until(lambda: any("no new model" in line for line in rig.said), "a line")
    assert rig.loaded == []


def test_a_runtime_that_raises_on_a_live_image_is_refused(rig: Rig) -> None:
    second = FakeRuntime("2")
    second.poison = {3}
    rig.wants(second)
    rig.swapper.tell()
    rig.shadow((1, 2, 3, 4))
    rig.ends("failed")
    assert rig.labels("1")
    assert any("poisoned" in line for line in rig.said)


def test_a_runtime_that_raises_when_it_is_warmed_is_refused(rig: Rig) -> None:
    second = FakeRuntime("2")
    second.warm_up = lambda _sizes: 1 / 0  # type: ignore[method-assign,assignment]
    rig.wants(second)
    rig.tell("failed")
    assert rig.labels("1")
    assert any("ZeroDivisionError" in line for line in rig.said)


def test_a_call_that_never_returns_costs_further_swaps_and_nothing_else(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(infer_deadline_s=0.05)
    second = FakeRuntime("2")
    second.gate.clear()
    rig.wants(second)
    rig.swapper.tell()
    rig.shadow((1, 2, 3, 4))
    rig.ends("stuck")
    assert rig.labels("1")
    assert any("model.infer_deadline_ms" in line for line in rig.said)
    rig.wants(FakeRuntime("3"))
    rig.swapper.tell()
    rig.until(lambda: any("before this replica starts again" in line for line in rig.said[-1:]), "a line")
    assert rig.loaded == ["2"]
    second.gate.set()


def test_a_first_run_may_take_longer_than_a_batch(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(infer_deadline_s=0.001)
    rig.rules = replace(RULES, shadow_images=0)
    second = FakeRuntime("2")
    second.warm_up = lambda _sizes: rig.swapper._stopping.wait(0.02)  # type: ignore[method-assign,assignment]
    rig.wants(second)
    rig.tell("swapped")
    assert rig.labels("2")


@pytest.mark.parametrize(("at", "said"), [("loading", "for loading a model"), ("warming", "a batch size's first run")])
def test_one_that_is_never_ready_costs_further_swaps_and_nothing_else(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, at: str, said: str
) -> None:
    monkeypatch.setattr(swap, "_PREPARE_DEADLINE_S", 0.05)
    never = threading.Event()
    second = FakeRuntime("2")

    def hang(_: object) -> Any:
        never.wait(10)

    rig.wants(second)
    if at == "loading":
        obtained = replace(rig.wanted.obtain(), load=hang)
        rig.wanted = replace(rig.wanted, obtain=lambda: obtained)
    else:
        second.warm_up = hang  # type: ignore[method-assign,assignment]
    rig.tell("stuck")
    assert rig.labels("1")
    assert any(f"{at} it has not ended in 0.05 s" in line and said in line for line in rig.said)
    assert not any("model.infer_deadline_ms" in line for line in rig.said)
    assert rig.released == []  # it still reads them
    never.set()


def test_a_batch_that_comes_after_its_comparison_is_not_for_the_next(rig: Rig) -> None:
    rig.wants(FakeRuntime("2"))
    rig.swapper.tell()
    rig.until(lambda: rig.hand_off._deliver is not None, "a batch to be wanted")
    late = rig.hand_off._deliver
    assert late is not None
    rig.wants(FakeRuntime("3", side=4))  # makes its own pixels, of bytes that the late batch does not have
    rig.tell_moved_on()
    rig.until(lambda: rig.state == 2 and rig.hand_off._deliver is not None, "the next comparison")
    sample = rig.flow.sample(1, 2)
    rig.budget.hold(sample, sample.size_bytes)
    late(sample)
    rig.until(lambda: rig.budget.used_bytes == 0, "it to be let go of")
    rig.shadow((1, 2, 3, 4), (5, 6, 7, 0))
    rig.ends("swapped")
    assert rig.labels("3")


def test_a_source_that_moves_on_meanwhile_ends_the_comparison(rig: Rig) -> None:
    second = FakeRuntime("2")
    rig.wants(second)
    rig.swapper.tell()
    rig.shadow((1, 2, 3, 4))
    rig.wants(FakeRuntime("1"))
    rig.tell("superseded")
    assert rig.labels("1")
    assert second.closed == 1
    rig.rules = replace(RULES, shadow_images=0)
    rig.wants(FakeRuntime("3"))
    rig.tell("swapped")
    assert rig.labels("3")


@pytest.mark.parametrize("at", ["look", "obtain", "load", "warm", "shadow"])
def test_the_end_of_the_service_waits_for_no_step(rig: Rig, at: str) -> None:
    reached, never = threading.Event(), threading.Event()

    def hang(*_: object) -> Any:
        reached.set()
        never.wait(10)

    second = FakeRuntime("2")
    if at == "obtain":
        rig.wants(second, obtain=hang)
    elif at == "load":
        rig.wants(second, obtain=lambda: Obtained("sha256:2", "fake 2", 0, hang))
    else:
        rig.wants(second)
    if at == "look":
        rig.swapper._look = hang
    elif at == "warm":
        second.warm_up = hang  # type: ignore[method-assign,assignment]
    rig.swapper.tell()
    if at == "shadow":
        rig.until(lambda: rig.state == 2, "shadow")
    else:
        assert reached.wait(5)
    rig.swapper.stop()
    assert not rig.swapper._thread.is_alive()
    assert rig.labels("1")
    never.set()


# --- the stream never waits -----------------------------------------------------------------------------------------


def test_batches_pass_by_while_one_is_compared(rig: Rig) -> None:
    second = FakeRuntime("2")
    rig.wants(second)
    rig.swapper.tell()
    rig.until(lambda: rig.state == 2, "shadow")
    second.gate.clear()
    second.running.clear()
    rig.shadow((1, 2, 3))
    assert second.running.wait(5)
    for _ in range(5):
        rig.flow.label(4, 5, 6, 7)
    assert rig.budget.used_bytes == 3 * 12  # of the one that is compared
    second.gate.set()
    rig.shadow((0, 1, 2, 3), (4,))
    rig.ends("swapped")
    assert [outcome.job.image_id for outcome in rig.shadowed] == ["1", "2", "3", "0", "1", "2", "3", "4"]


def test_work_is_followed_by_rest_in_proportion() -> None:
    assert rest_s(1.0, 0.25) == 3.0
    assert rest_s(1.0, 1.0) == 0.0


def test_it_rests_after_every_size_and_batch(make_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make_rig()
    rested: list[float] = []
    monkeypatch.setattr(rig.swapper._stopping, "wait", lambda seconds: rested.append(seconds))
    rig.rules = replace(RULES, cpu_share=0.5)
    second = FakeRuntime("2")
    second.warm_up = lambda _sizes: rig.clock.advance(2.0)  # type: ignore[method-assign,assignment]
    infer = second.infer

    def slow(pixels: Any) -> Any:
        rig.clock.advance(1.0)
        return infer(pixels)

    second.infer = slow  # type: ignore[method-assign]
    rig.wants(second)
    rig.swapper.tell()
    rig.shadow((1, 2, 3, 4), (5, 6, 7, 0))
    rig.ends("swapped")
    assert rested == [2.0] * 4 + [1.0] * 2


# --- what it says goes to a topic of its own ------------------------------------------------------------------------


def test_shadow_events_are_label_events_with_the_new_digest_and_a_mark() -> None:
    sink = FakeSink()
    context = EventContext("cluster", "group", "replica", "predictions", "images.dlq", 1024 * 1024)
    events = ShadowEvents(sink, context, topic="predictions.shadow", clock=FakeClock())
    (labelled,) = fake_serving(FakeRuntime("2")).inference(Batch((_image(3),), CloseReason.SIZE))
    assert not isinstance(labelled, Rejected)
    events.publish(labelled)
    (record,) = sink.handed_over
    assert (record.topic, record.key) == ("predictions.shadow", b"key")
    assert dict(record.headers)["ce_shadow"] == b"true"
    assert fake_digest("2").encode() in (record.value or b"")


def _image(value: int) -> DecodedImage:
    job = ImageJob(Delivery(LEASE, value, b"", key=b"key"), str(value))
    return DecodedImage(job, np.full((2, 2, 3), value, np.uint8), ImageFacts(4, 4, "PNG", "", 1), 0.0, 0.0, 999.0)


def test_a_shadow_topic_that_cannot_be_written_is_said_and_harms_nothing() -> None:
    sink = FakeSink()
    sink.answers = lambda _record: OSError("away")
    context = EventContext("cluster", "group", "replica", "predictions", "images.dlq", 1024 * 1024)
    events = ShadowEvents(sink, context, topic="predictions.shadow", clock=FakeClock())
    (labelled,) = fake_serving(FakeRuntime("2")).inference(Batch((_image(3),), CloseReason.SIZE))
    assert not isinstance(labelled, Rejected)
    for _ in range(3):
        events.publish(labelled)
    wait_until(lambda: events.under_way == 0, timeout_s=5, what="the answers")


def test_a_shadow_event_that_cannot_be_made_is_left_out() -> None:
    sink = FakeSink()
    context = EventContext("cluster", "group", "replica", "predictions", "images.dlq", 1024 * 1024)
    events = ShadowEvents(sink, replace(context, encoder=_NoEncoder()), topic="predictions.shadow", clock=FakeClock())
    (labelled,) = fake_serving(FakeRuntime("2")).inference(Batch((_image(3),), CloseReason.SIZE))
    assert not isinstance(labelled, Rejected)
    events.publish(labelled)
    assert (events.under_way, sink.handed_over) == (0, [])


class _NoEncoder:
    content_type = b"application/json"

    def encode(self, *_: object) -> bytes:
        raise ValueError("no schema for it")


# --- memory ---------------------------------------------------------------------------------------------------------


def test_what_is_left_is_the_least_of_the_host_and_every_cgroup(tmp_path: Path) -> None:
    meminfo, groups, root = tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "fs"
    meminfo.write_text("MemTotal:  900 kB\nMemAvailable:  500 kB\n")
    groups.write_text("0::/pod/container\n")
    left = {"meminfo": meminfo, "cgroup_root": root, "process_cgroups": groups}
    assert available_bytes(**left) == 500 * 1024
    inner = root / "pod" / "container"
    inner.mkdir(parents=True)
    for name, text in (("memory.max", "max"), ("memory.current", "4000"), ("memory.stat", "anon 1\n")):
        (inner / name).write_text(text + "\n")
    assert available_bytes(**left) == 500 * 1024
    for name, text in (("memory.max", "9000"), ("memory.current", "8000"), ("memory.stat", "inactive_file 300")):
        (inner.parent / name).write_text(text + "\n")
    assert available_bytes(**left) == 1300
    assert available_bytes(meminfo=root / "no", cgroup_root=root / "no", process_cgroups=root / "no") is None
