"""A new version of the model goes live in a running replica, or is refused and the running one stays.

    look ──> obtain ──> memory? ──> load ──> warm ──> shadow ──> swap
     ^      download,                        rests    compares,   between
     │      verify                                    rests       two images
     └── every `swap.watch_interval_ms` and at once on SIGHUP; while it shadows, too: the source may have moved on

One thread decides. What others do for it, which may take long or never come back, runs in a second one, so that the
service's end waits for neither. The stream waits for neither at any time: it feels only the CPU that they take.
"""

import gc
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from loguru import logger

from consumer.errors import CacheFull, Fatal, ModelSourceUnreachable, OuzelError, Retryable
from consumer.messages import Batch, CloseReason, DecodedImage, Labelled, Rejected
from consumer.metrics import SwapResult, SwapState
from consumer.observer import Observer
from consumer.ports import Clock
from consumer.stages.serving import Serving
from consumer.stages.shadow import HandOff, Sample, ShadowComparison, Verdict, rest_s

T = TypeVar("T")

_ASK_AGAIN_S = 1.0
"""How long a batch that was asked for may stay away before further images keep their bytes for it."""
_JOIN_S = 5.0
_PREPARE_DEADLINE_S = 15 * 60.0
"""For loading a new model, and for each batch size that it is warmed with: a runtime may convert or compile it first,
on cores that the running model keeps busy. Nobody waits for it, so this is only for what never comes back."""
_MIB = 1024 * 1024
_BETTER_LATER = (Retryable, ModelSourceUnreachable, CacheFull, OSError)


@dataclass(frozen=True, slots=True)
class SwapRules:
    """`[swap]` of the settings."""

    watch_interval_s: float
    """0: only when told."""
    min_agreement: float
    shadow_images: int
    cpu_share: float


@dataclass(frozen=True, slots=True)
class Obtained:
    """A version that is on this disk, verified."""

    digest: str
    name: str
    """For people: name and version."""
    needed_bytes: int
    """Memory that it will about take."""
    load: Callable[[str], Serving]
    """On this runtime, if the settings leave the choice and it runs the model. Raises `Fatal`, and whatever a runtime
    raises."""
    release: Callable[[], None] = lambda: None
    """It will not be loaded: its files are not needed any more."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the source stands for now."""

    key: str
    """Differs for whatever is another model, or may be one."""
    name: str
    """For people."""
    rules: SwapRules
    obtain: Callable[[], Obtained]
    """Blocks for as long as its download takes. Raises `OuzelError` and OSError."""
    source: str = ""
    """`model.source`, as it is now."""
    digest: str = ""
    """Where the registry knows it without a download; else empty."""


class Swapping(Protocol):
    """What is needed of the flow."""

    @property
    def serving(self) -> Serving:
        """The model that labels."""
        ...

    def swap(self, serving: Serving) -> None:
        """Label with this one from now on."""
        ...

    def take_largest_delay_s(self) -> float:
        """The largest delay of an image since this was asked last, in seconds."""
        ...


class _Stopped(Exception):
    """The service ends."""


class _Stuck(Exception):
    """Something asked of the new model has not come back."""


class _Refused(Exception):
    """The running model stays. `again`: what is wrong may be better at the next look."""

    def __init__(self, result: SwapResult, why: str, *, again: bool = False) -> None:
        super().__init__(why)
        self.result = result
        self.again = again


class _MovedOn(Exception):
    """The source stands for something else by now."""

    def __init__(self, wanted: Wanted) -> None:
        super().__init__(wanted.name)
        self.wanted = wanted


@dataclass(frozen=True, slots=True)
class _Deadline:
    """For one thing that is asked of a new model."""

    doing: str
    seconds: float
    of: str
    """Where the limit is from, for people."""

    def __str__(self) -> str:
        return f"{self.doing} it has not ended in {self.seconds:g} s ({self.of})"


@dataclass(frozen=True, slots=True)
class _Offered:
    """A live batch, and for which comparison it was asked for: one that comes late may meet the next."""

    sample: Sample
    comparison: ShadowComparison


class _Told:
    """Somebody asked for a look."""


class _Stop:
    """Somebody asked for the end."""


class Swapper:
    """Watches the source of the model, and brings what it stands for live."""

    def __init__(
        self,
        flow: Swapping,
        hand_off: HandOff,
        *,
        look: Callable[[], Wanted],
        rules: SwapRules,
        running_key: str,
        available_bytes: Callable[[], int | None],
        shadow_decode_bytes: int,
        infer_deadline_s: float,
        clock: Clock,
        observer: Observer,
        shadow_event: Callable[[Labelled], None] = lambda _labelled: None,
    ) -> None:
        """
        Args:
            flow: whose model is swapped.
            hand_off: the flow's, for batches to compare on.
            look: asks what the source stands for. Blocks for as long as its registry takes; raises `OuzelError` and
                OSError where that cannot be told.
            rules: until the first look.
            running_key: of the model that labels; empty where it is not known.
            available_bytes: memory that is left; None where nothing says.
            shadow_decode_bytes: what images may take that wait to be decoded for the new model.
            infer_deadline_s: for one batch of live images on the new model.
            shadow_event: told what the new model says of each image that it is compared on.
        """
        self._flow = flow
        self._hand_off = hand_off
        self._look = look
        self._rules = rules
        self._running_key = running_key
        self._available_bytes = available_bytes
        self._shadow_decode_bytes = shadow_decode_bytes
        self._compare_deadline = _Deadline("comparing", infer_deadline_s, "model.infer_deadline_ms")
        self._clock = clock
        self._observer = observer
        self._shadow_event = shadow_event
        self._served = {flow.serving.info.digest}
        self._settled_key = ""
        """Of what was refused: not tried again until the source changes, or somebody asks."""
        self._said = ("", "")
        self._given_up = False
        self._inbox: queue.SimpleQueue[_Offered | _Told | _Stop] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._helper = _Helper(self._stopping)
        self._thread = threading.Thread(target=self._run, name="swap", daemon=True)

    # --- for the service --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def tell(self) -> None:
        """Look now, and try again what was refused. May be called from a signal handler."""
        self._inbox.put(_Told())  # a SimpleQueue's put may interrupt itself

    def stop(self) -> None:
        """End at once, whatever is under way; the new model is not taken. Idempotent."""
        self._stopping.set()
        self._inbox.put(_Stop())
        self._helper.wake()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)

    # --- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        look_at_s = self._next_look_s()
        try:
            while True:
                item = self._next(self._until(look_at_s))
                if isinstance(item, _Offered):  # asked for, and not needed any more
                    self._hand_off.done(item.sample)
                elif item is not None or self._until(look_at_s) == 0:
                    self._follow_or_say(told=item is not None)
                    look_at_s = self._next_look_s()
        except _Stopped:
            self._hand_off.want_nothing()

    def _follow_or_say(self, *, told: bool) -> None:
        """Whatever comes of one look, the next is made."""
        try:
            self._follow(told=told)
        except _Stopped:
            raise
        except Exception as error:
            logger.opt(exception=error).error("a new model cannot be followed: {}", _words(error))
            self._observer.swap_ended("failed")

    def _next(self, timeout_s: float | None) -> _Offered | _Told | None:
        try:
            item = self._inbox.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(item, _Stop):
            raise _Stopped
        return item

    def _next_look_s(self) -> float | None:
        """The monotonic second of the next look that nobody asks for."""
        interval_s = self._rules.watch_interval_s
        return self._clock.monotonic_s() + interval_s if interval_s and not self._given_up else None

    def _until(self, at_s: float | None) -> float | None:
        return None if at_s is None else max(0.0, at_s - self._clock.monotonic_s())

    def _follow(self, *, told: bool) -> None:
        """Look, and try what is new, until nothing is."""
        if self._given_up:
            logger.error("no other model is taken before this replica starts again: a call of one has not come back")
            return
        if told:
            self._settled_key, self._said = "", ("", "")
        wanted = self._looked()
        while wanted is not None and self._is_new(wanted, told=told):
            try:
                self._try(wanted)
            except _MovedOn as moved:
                self._observer.swap_ended("superseded")
                logger.info("{} is let go of: the source stands for {} by now", wanted.name, moved.wanted.name)
                wanted = moved.wanted
            else:
                return

    def _looked(self) -> Wanted | None:
        try:
            wanted = self._helper.call(self._look)
        except _Stopped:
            raise
        except Exception as error:
            self._say("", f"whether there is a new model cannot be told: {_words(error)}", error)
            self._observer.swap_ended("unreachable")
            return None
        self._rules = wanted.rules
        return wanted

    def _is_new(self, wanted: Wanted, *, told: bool) -> bool:
        if wanted.digest and wanted.digest == self._flow.serving.info.digest:
            self._running_key = wanted.key
        if wanted.key == self._running_key:
            if told:
                logger.info("no new model: {} is the one that labels", wanted.name)
            return False
        return wanted.key != self._settled_key

    # --- one new model ----------------------------------------------------------------------------------------------

    def _try(self, wanted: Wanted) -> None:
        candidate: Serving | None = None
        try:
            with self._state("loading"):
                obtained = self._helper.call(wanted.obtain)
                if obtained.digest == self._flow.serving.info.digest:
                    self._running_key = wanted.key
                    logger.info("no new model: {} is the one that labels", obtained.name)
                    return
                began_s, before_s = self._clock.monotonic_s(), self._flow.take_largest_delay_s()
                candidate = self._load(obtained)
                self._warm(candidate, wanted.rules)
            compared = self._compare(candidate, obtained, wanted)
        except _MovedOn:
            if candidate is not None:
                candidate.close()
            raise
        except _Stopped:
            raise  # a call of it may be under way: it ends with the process
        except _Stuck as stuck:
            self._give_up(wanted, stuck)
        except _Refused as refused:
            self._stays(candidate, wanted, refused)
        except Exception as error:
            self._stays(
                candidate, wanted, _Refused("failed", _words(error), again=isinstance(error, _BETTER_LATER)), error
            )
        else:
            self._swap(candidate, wanted, f"{compared}; {self._delays(began_s, before_s)}")

    def _load(self, obtained: Obtained) -> Serving:
        try:
            self._check_memory(obtained)
            logger.info("new model {}: loading it beside the one that labels", obtained.name)
            runtime = self._flow.serving.info.runtime
            deadline = _Deadline("loading", _PREPARE_DEADLINE_S, "the limit for loading a model")
            return self._helper.call(lambda: obtained.load(runtime), deadline)
        except _Stuck:
            raise  # it still reads its files
        except Exception:
            obtained.release()
            raise

    def _check_memory(self, obtained: Obtained) -> None:
        left = self._available_bytes()
        if left is not None and left < obtained.needed_bytes:
            raise _Refused(
                "no_memory",
                f"beside the running model it needs about {obtained.needed_bytes // _MIB} MiB, and {left // _MIB} MiB "
                "are left; give the replica more memory, or restart it",
                again=True,
            )

    def _warm(self, candidate: Serving, rules: SwapRules) -> None:
        """Every batch size, the largest first, with rests between."""
        for size in reversed(candidate.inference.sizes):
            began_s = self._clock.monotonic_s()
            deadline = _Deadline("warming", _PREPARE_DEADLINE_S, "the limit for a batch size's first run")
            self._helper.call(lambda size=size: candidate.inference.warm_up(size), deadline)  # type: ignore[misc]
            self._rest(self._clock.monotonic_s() - began_s, rules)

    def _swap(self, serving: Serving, wanted: Wanted, how: str) -> None:
        old, new = self._flow.serving.info, serving.info
        gc.unfreeze()  # the first model is among what `bootstrap` has frozen, and would never be freed
        self._flow.swap(serving)
        self._served.add(new.digest)
        self._running_key, self._settled_key = wanted.key, ""
        self._observer.serves(new, wanted.source)
        about = logger.bind(model_digest=new.digest, previous_digest=old.digest)
        newly, before = f"{new.name} {new.version}", f"{old.name} {old.version}"
        about.info("model {} labels from now on, in place of {}: {}", newly, before, how)
        self._observer.swap_ended("swapped")

    def _delays(self, began_s: float, before_s: float) -> str:
        took_s, during_s = self._clock.monotonic_s() - began_s, self._flow.take_largest_delay_s()
        return (
            f"an image waited {during_s * 1000:.0f} ms for its labels at most in these {took_s:.1f} s, "
            f"{before_s * 1000:.0f} ms before"
        )

    def _stays(
        self, candidate: Serving | None, wanted: Wanted, refused: _Refused, error: Exception | None = None
    ) -> None:
        if candidate is not None:
            candidate.close()
        if not refused.again:
            self._settled_key = wanted.key
        running = self._flow.serving.info
        self._say(
            wanted.key,
            f"the model stays {running.name} {running.version}: {wanted.name} is not taken: {refused}"
            + ("" if refused.again else "; it is tried again on SIGHUP, and another when the source changes"),
            error,
        )
        self._observer.swap_ended(refused.result)

    def _give_up(self, wanted: Wanted, stuck: _Stuck) -> None:
        """Nothing can end the call, and a second one might hang too."""
        self._given_up = True
        logger.error(
            "{} is not taken: {} and cannot be cancelled; the running model goes on, and no other is taken before this "
            "replica starts again",
            wanted.name,
            stuck,
        )
        self._observer.swap_ended("stuck")

    # --- shadow -----------------------------------------------------------------------------------------------------

    def _compare(self, candidate: Serving, obtained: Obtained, wanted: Wanted) -> str:
        """Until it agrees; what was found, in words. Raises _Refused, _MovedOn."""
        rules = wanted.rules
        if obtained.digest in self._served:
            return "it has labelled here before, and was not compared"
        if rules.shadow_images == 0:
            return "it was not compared (swap.shadow_images)"
        comparison = ShadowComparison(images=rules.shadow_images, min_agreement=rules.min_agreement)
        logger.info("new model {}: comparing it on {} live images", obtained.name, rules.shadow_images)
        with self._state("shadowing"):
            self._collect(comparison, candidate, wanted)
        if comparison.verdict is Verdict.DISAGREES:
            raise _Refused("refused", f"{comparison}, and swap.min_agreement is {rules.min_agreement:.1%}")
        return str(comparison)

    def _collect(self, comparison: ShadowComparison, candidate: Serving, wanted: Wanted) -> None:
        look_at_s = self._next_look_s()
        same_pixels = candidate.decodes_as == self._flow.serving.decodes_as
        bodies = 0 if same_pixels else candidate.inference.sizes[-1]

        def deliver(sample: Sample) -> None:
            self._inbox.put(_Offered(sample, comparison))

        try:
            while comparison.verdict is Verdict.OPEN:
                self._hand_off.want(deliver, bodies=bodies, decode_bytes=self._shadow_decode_bytes)
                until_s = self._until(look_at_s)
                item = self._next(_ASK_AGAIN_S if until_s is None else min(_ASK_AGAIN_S, until_s))
                if isinstance(item, _Offered):
                    if item.comparison is comparison:
                        self._compare_on(item.sample, comparison, candidate, wanted.rules, same_pixels=same_pixels)
                    else:
                        self._hand_off.done(item.sample)
                elif item is not None or self._until(look_at_s) == 0:
                    look_at_s = self._next_look_s()
                    self._stays_wanted(wanted)
        finally:
            self._hand_off.want_nothing()

    def _stays_wanted(self, wanted: Wanted) -> None:
        """Raises _MovedOn where the source stands for something else."""
        found = self._looked()
        if found is not None and found.key != wanted.key:
            raise _MovedOn(found)

    def _compare_on(
        self, sample: Sample, comparison: ShadowComparison, candidate: Serving, rules: SwapRules, *, same_pixels: bool
    ) -> None:
        images = [image for image, _ in sample.pairs]

        def answer() -> tuple[list[Labelled | Rejected], float]:
            began_s = self._clock.monotonic_s()
            batch = images if same_pixels else [_decoded_for(candidate, image) for image in images]
            outcomes = candidate.inference(Batch(tuple(batch), CloseReason.MODEL))
            return outcomes, self._clock.monotonic_s() - began_s

        try:
            outcomes, worked_s = self._helper.call(answer, self._compare_deadline)
        finally:
            self._hand_off.done(sample)
        for (_, running), outcome in zip(sample.pairs, outcomes, strict=True):
            if isinstance(outcome, Rejected):
                raise _Refused("failed", f"it fails on an image that the running model labels: {outcome.error}")
            same = comparison.add(running, outcome)
            self._observer.shadowed(same=same, agreement=comparison.agreement)
            self._shadow_event(outcome)
        self._rest(worked_s, rules)

    # --- small things -----------------------------------------------------------------------------------------------

    def _rest(self, worked_s: float, rules: SwapRules) -> None:
        if self._stopping.wait(rest_s(worked_s, rules.cpu_share)):
            raise _Stopped

    @contextmanager
    def _state(self, state: SwapState) -> Iterator[None]:
        self._observer.swap_state(state)
        try:
            yield
        finally:
            self._observer.swap_state("none")

    def _say(self, key: str, text: str, error: Exception | None = None) -> None:
        """Once, until something else is to be said."""
        if self._said == (key, text):
            return
        self._said = (key, text)
        if error is None or isinstance(error, OuzelError | OSError):
            logger.warning("{}", text)
        else:
            logger.opt(exception=error).error("{}", text)  # a defect of the model's runtime, or of ours


def _decoded_for(candidate: Serving, image: DecodedImage) -> DecodedImage:
    decoded = candidate.decoder.decode(image.body or b"")
    return replace(image, pixels=decoded.pixels, facts=decoded.facts)


def _words(error: Exception) -> str:
    """An error and what to do about it, in one line."""
    if not isinstance(error, OuzelError):
        return f"{type(error).__name__}: {error}"
    remedy = f" ({error.remedy})" if isinstance(error, Fatal) and error.remedy else ""
    return " ".join(f"{error}{remedy}".split())


class _Helper:
    """A thread for calls that may take long, or for ever: whoever asked can stop waiting."""

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def call(self, work: Callable[[], T], deadline: _Deadline | None = None) -> T:
        """What `work` returns or raises. Raises also _Stuck past the deadline, and _Stopped."""
        answer: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
        self._answer = answer

        def run() -> None:
            try:
                answer.put((work(), None))
            except BaseException as error:
                answer.put((None, error))

        if self._stopping.is_set():
            raise _Stopped
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="swap-helper", daemon=True)
            self._thread.start()
        self._work.put(run)
        try:
            value, error = answer.get(timeout=deadline.seconds if deadline is not None else None)
        except queue.Empty:
            raise _Stuck(str(deadline)) from None
        if error is not None:
            raise error
        return value  # type: ignore[return-value]

    def wake(self) -> None:
        """Whoever waits for an answer need not any more."""
        self._answer.put((None, _Stopped()))

    def _serve(self) -> None:
        while True:
            self._work.get()()
