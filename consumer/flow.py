"""The way of an image, from a message to its outcome: parse -> fetch -> decode -> batch -> infer.

The service and the one-shot `ouzel classify` share it; they differ in where messages come from and where outcomes go.
Stages overlap: while one batch is on the model, the next images are fetched and decoded.

    submit ──> decode pool: parse ──┬─ inline ──────────────> decode ──> batcher ──> model thread ──> on_outcome
                                    └─ reference ─> fetch pool ──┘          (one batch at a time)
                                                     │  ^
                                                     └──┘ retries, by `tick`

Each record of a message that carries several goes this way alone, under a delivery of its own; the message leaves as
one outcome when the last of them is there.

A suspect, which may have ended the last process that decoded it, is decoded in a sandbox, one after the other.

Another model may take over between two images (`swap`): each is labelled by the one whose decoder made its pixels.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from consumer.errors import (
    DecoderCrashed,
    DecoderStuck,
    Fatal,
    InvalidMessage,
    MalformedMessage,
    ProcessingFailed,
    Retryable,
    RuntimeStuck,
    SchemaNotLoaded,
    StoreBusy,
)
from consumer.messages import (
    Abandoned,
    Batch,
    DecodedImage,
    Delivery,
    FetchedImage,
    ImageJob,
    Labelled,
    Outcome,
    Records,
    Rejected,
    Several,
    Skipped,
    StoredImage,
)
from consumer.observer import Observer
from consumer.ports import Clock, ImageDecoder, ImageStore, MessageParser, RecordDecoder
from consumer.silence import SilenceLimit
from consumer.stages.batch import Batcher
from consumer.stages.fetch import choose_store, verify
from consumer.stages.fetch_cache import Answer, FetchCache, key_of
from consumer.stages.gather import Gathering
from consumer.stages.intake import ByteBudget
from consumer.stages.retry import Attempt, Retries
from consumer.stages.serving import Serving, Servings
from consumer.stages.shadow import HandOff
from consumer.workers import Workers

_JOIN_S = 10.0
_LET_GO_S = 1.0
"""For threads in a decoder or a store when all ends: the interpreter should not end under them."""
_PAUSED_S = 2.0
"""Between two ticks, which come many times a second: the process was stopped, or its machine was. After that whatever
is under way gets so much time before it counts as stuck."""
_SCHEMA_REGISTRY = "schema-registry"  # its health key, beside those of the stores
_SANDBOX_REST_S = 30.0
"""Seconds without a suspect after which the sandbox's memory is given back."""
_NO_STAGE = frozenset({"waiting", "gathering"})
"""Where an item may sit for as long as it takes: waiting for a store that is down, or for the parts of its message."""


class _Whole:
    """A message whose records are on their way, each as a part."""

    def __init__(self, records: Records) -> None:
        self.gathering = Gathering[Outcome](records.delivery, (entry.delivery for entry in records.entries))
        self.lock = threading.Lock()
        self.to_begin = deque(entry for entry in records.entries if isinstance(entry, ImageJob))
        self.under_way = 0
        self.given_up = False
        """A part was abandoned: the message will come again, so no further part begins."""


class Flow:
    """Threads and hand-offs between the stages.

    `on_outcome` is called exactly once for every delivery submitted, from any thread, and must not block. `on_crash`
    is called with an error that no image is at fault for; the flow is of no use afterwards.
    """

    def __init__(
        self,
        *,
        parser: MessageParser,
        stores: Sequence[ImageStore],
        cache: FetchCache | None = None,
        serving: Serving,
        batcher: Batcher,
        retries: Retries,
        budget: ByteBudget,
        clock: Clock,
        observer: Observer,
        tombstones: str,
        max_image_bytes: int,
        fetch_deadline_s: float,
        infer_deadline_s: float,
        decode_deadline_s: float,
        silence: SilenceLimit,
        decode_threads: int,
        fetch_concurrency: int,
        on_outcome: Callable[[Outcome], None],
        on_crash: Callable[[BaseException], None],
        schemas: RecordDecoder | None = None,
        hand_off: HandOff | None = None,
    ) -> None:
        self._parser = parser
        self._schemas = schemas
        self._stores = tuple(stores)
        self._cache = cache
        self._servings = Servings(serving)
        self._hand_off = hand_off
        self._batcher = batcher
        self._retries = retries
        self._retries_lock = threading.Lock()
        self._budget = budget
        self._clock = clock
        self._observer = observer
        self._tombstones = tombstones
        self._max_image_bytes = max_image_bytes
        self._fetch_deadline_s = fetch_deadline_s
        self._infer_deadline_s = infer_deadline_s
        self._decode_deadline_s = decode_deadline_s
        self._silence = silence
        self._on_outcome = on_outcome
        self._on_crash = on_crash
        self._decode_pool = Workers(decode_threads, "decode")
        self._sandbox_pool = Workers(1, "sandbox")
        self._fetch_pool = Workers(fetch_concurrency, "fetch")
        self._model_thread = threading.Thread(target=self._run_model, name="model", daemon=True)
        self._batch_changed = threading.Condition(threading.Lock())
        self._model_waits = False
        self._coming = 0  # images between the decode pool's door and the batcher
        self._closed = False
        self._infer_since_s: float | None = None
        self._stuck = False
        self._ticked_s = self._judge_from_s = clock.monotonic_s()
        self._stage_of: dict[int, tuple[str, float]] = {}
        self._wholes: dict[int, _Whole] = {}
        self._with_decoder: dict[int, tuple[float, Delivery]] = {}
        self._with_decoder_lock = threading.Lock()
        self._sandbox_used_s: float | None = None
        self._room_for_pixels: dict[int, int] = {}
        self._largest_delay_s = 0.0

    # --- for the owner ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Warm the model (every batch size), then take work. Raises ModelError."""
        self.serving.inference.warm_up()
        self._model_thread.start()

    @property
    def serving(self) -> Serving:
        """The model that labels what comes now."""
        return self._servings.current

    def swap(self, serving: Serving) -> None:
        """Label with this one, warm already, whatever is decoded from now on. The old one is closed when what it has in
        hand is done. Any thread."""
        self._servings.swap(serving)

    def take_largest_delay_s(self) -> float:
        """The longest that an image took from its pixels to its labels since this was asked last, in seconds."""
        largest_s, self._largest_delay_s = self._largest_delay_s, 0.0
        return largest_s

    def submit(self, delivery: Delivery) -> None:
        """Take one message. Never blocks."""
        self._budget.hold(delivery, delivery.size_bytes)
        self._hold_pixels(delivery, self.serving)
        self._enter_decode_pool()
        self._decode_pool.submit(self._guard, self._parse, delivery)

    def tick(self) -> None:
        """Send what is due for another try on its way; call it a few times a second. Never blocks.

        Raises:
            RuntimeStuck: a model call is past its deadline.
            DecoderStuck: a decode is.
        """
        now_s = self._clock.monotonic_s()
        if now_s - self._ticked_s > _PAUSED_S:  # we stood still, not what we wait for: it has not had its time
            self._judge_from_s = now_s + _PAUSED_S
        self._ticked_s = now_s
        with self._with_decoder_lock:
            self._mind_silence()
            decoding = list(self._with_decoder.values())
        if now_s >= self._judge_from_s:
            self._check_model(now_s)
            self._check_decoder(now_s, decoding)
        self._rest_sandbox(now_s)
        with self._retries_lock:
            due = self._retries.due(now_s)
        for attempt in due:
            self._try(attempt)

    def _try(self, attempt: Attempt) -> None:
        self._fetch_pool.submit(self._guard, self._fetch if attempt.schema is None else self._load_schema, attempt)

    def _check_model(self, now_s: float) -> None:
        since_s = self._infer_since_s
        if since_s is not None and now_s - since_s > self._infer_deadline_s:
            self._stuck = True
            raise RuntimeStuck(
                f"a model call has not returned for {self._infer_deadline_s:g} s",
                remedy="raise model.infer_deadline_ms if the model is that slow, or lower batch.max_size",
            )

    def _check_decoder(self, now_s: float, decoding: Sequence[tuple[float, Delivery]]) -> None:
        for since_s, delivery in decoding:
            if now_s - since_s > self._decode_deadline_s:
                raise DecoderStuck(
                    f"decoding {delivery.partition} offset {delivery.offset} has not ended for "
                    f"{self._decode_deadline_s:g} s",
                    remedy="start again: what was in hand is then decoded in a sandbox, the culprit a dead letter. "
                    "Raise decode.deadline_ms if images take that long",
                )

    def _rest_sandbox(self, now_s: float) -> None:
        used_s = self._sandbox_used_s
        if used_s is not None and now_s - used_s > _SANDBOX_REST_S:
            self._sandbox_used_s = None
            self._sandbox_pool.submit(self.serving.sandbox.close)

    def is_decoding(self, delivery: Delivery) -> bool:
        """Whether a decoder has it, or a part of it."""
        with self._with_decoder_lock:
            parts = [held.part_of for _, held in self._with_decoder.values()]
        return self._stage_of.get(id(delivery), ("", 0.0))[0] == "decode" or any(each is delivery for each in parts)

    def has_begun(self, delivery: Delivery) -> bool:
        """Whether a stage has taken it up."""
        return id(delivery) in self._stage_of

    @property
    def holds_work(self) -> bool:
        """Whether any stage has a message, or waits for a store with it."""
        return bool(self._stage_of)

    def abandon_ended(self) -> None:
        """Let go of images that wait for another try and whose lease no longer wants new work."""
        with self._retries_lock:
            known = self._retries.down_stores()
            gone = self._retries.forget(lambda job: not job.delivery.lease.wants_new_work)
            self._tell_stores_forgotten(known)
        for attempt in gone:
            self._leave(Abandoned(attempt.job.delivery))

    def oldest(self) -> dict[str, float]:
        """For each stage that holds work, the monotonic second since which its oldest item has been there.

        Items that wait for a store presumed down are not held by a stage, nor is a message whose parts are under way.
        """
        oldest: dict[str, float] = {}
        for stage, since_s in list(self._stage_of.values()):
            if stage not in _NO_STAGE:
                oldest[stage] = min(since_s, oldest.get(stage, since_s))
        return oldest

    def down_stores(self) -> dict[str, float]:
        """Stores presumed down, with the monotonic second since when."""
        with self._retries_lock:
            return self._retries.down_stores()

    def close(self) -> None:
        """Stop the threads; work that has not begun is dropped (it was never committed). Idempotent."""
        with self._batch_changed:
            self._closed = True
            self._batch_changed.notify_all()
        self._budget.close()
        for pool in (self._fetch_pool, self._decode_pool, self._sandbox_pool):
            pool.close()  # all of them first, so that none hands on to another
        self.serving.sandbox.close()
        if self._model_thread.is_alive() and not self._stuck:
            self._model_thread.join(timeout=_JOIN_S)
        for pool in (self._fetch_pool, self._decode_pool):
            pool.join(_LET_GO_S)
        self._servings.close()

    # --- parse ------------------------------------------------------------------------------------------------------

    def _parse(self, delivery: Delivery) -> None:
        if not delivery.lease.wants_new_work:
            self._leave_decode_pool()
            self._leave(Abandoned(delivery))
            return
        self._enter_stage(delivery, "parse")
        if delivery.value is None:
            self._leave_decode_pool()
            self._tombstone(delivery)
            return
        try:
            with self._observer.stage("parse"):
                parsed = self._parser(delivery)
                attempt = self._first_attempt(parsed) if isinstance(parsed, ImageJob) else None
        except SchemaNotLoaded as needed:
            self._leave_decode_pool()
            self._ask_for_schema(delivery, needed.schema)
            return
        except InvalidMessage as error:
            self._leave_decode_pool()
            self._reject(delivery, error, "parse")
            return
        if isinstance(parsed, ImageJob):
            self._go(parsed, attempt)
            return
        self._leave_decode_pool()
        if isinstance(parsed, Skipped):
            self._leave(parsed)
        else:
            self._take_apart(parsed)

    def _go(self, job: ImageJob, attempt: Attempt | None) -> None:
        """From the decode pool on: an inline image stays in it, a reference goes to the fetch pool."""
        if attempt is None:
            fetched = FetchedImage(job, job.data or b"")
            if job.delivery.suspect:
                self._leave_decode_pool()
                self._await_sandbox(fetched, "parse")
            else:
                self._receive(fetched, "parse")
            return
        self._leave_decode_pool()
        if self._admitted(attempt):
            self._try(attempt)

    def _tombstone(self, delivery: Delivery) -> None:
        if self._tombstones == "dead_letter":
            self._reject(delivery, MalformedMessage("a tombstone (null value) is no image"), "parse")
        else:
            self._leave(Skipped(delivery, "tombstone"))

    # --- messages with several records ------------------------------------------------------------------------------

    def _take_apart(self, records: Records) -> None:
        """Send each record on its way."""
        whole = _Whole(records)
        self._enter_stage(records.delivery, "gathering")
        self._wholes[id(records.delivery)] = whole
        for entry in records.entries:
            if not isinstance(entry, ImageJob):
                self._collect(entry)
        self._begin_parts(whole)

    def _begin_parts(self, whole: _Whole) -> None:
        """Begin what there is room for, and one part always: a message may ask for more images than fit at once."""
        lease = whole.gathering.message.lease
        with whole.lock:
            while whole.to_begin and not whole.given_up and not lease.ended:
                serving = self.serving
                room = self._budget.used_bytes + serving.inference.image_bytes <= self._budget.max_bytes
                if whole.under_way and not room:
                    return
                whole.under_way += 1
                job = whole.to_begin.popleft()
                self._hold_pixels(job.delivery, serving)
                self._begin_part(job)
            unwanted = list(whole.to_begin)
            whole.to_begin.clear()
        for job in unwanted:
            self._collect(Abandoned(job.delivery))

    def _begin_part(self, job: ImageJob) -> None:
        self._enter_decode_pool()
        self._decode_pool.submit(self._guard, self._part, job)

    def _part(self, job: ImageJob) -> None:
        self._enter_stage(job.delivery, "parse")
        try:
            attempt = self._first_attempt(job)
        except InvalidMessage as error:
            self._leave_decode_pool()
            self._reject(job.delivery, error, "parse", job.image_id)
            return
        self._go(job, attempt)

    def _part_left(self, outcome: Outcome) -> None:
        """A part is done: it makes room for the next one."""
        part = outcome.delivery
        self._budget.release(part)
        whole = self._wholes[id(part.message)]
        with whole.lock:
            whole.under_way -= 1
            whole.given_up = whole.given_up or isinstance(outcome, Abandoned)
        self._collect(outcome)
        self._begin_parts(whole)

    def _collect(self, outcome: Outcome) -> None:
        """Note what became of a part. With the last one the whole message leaves."""
        message = outcome.delivery.message
        outcomes = self._wholes[id(message)].gathering.add(outcome.delivery, outcome)
        if outcomes is None:
            return
        done = tuple(each for each in outcomes if isinstance(each, Labelled | Rejected | Skipped))
        self._leave(Several(message, done) if len(done) == len(outcomes) else Abandoned(message))
        del self._wholes[id(message)]

    # --- schemas ----------------------------------------------------------------------------------------------------

    def _ask_for_schema(self, delivery: Delivery, schema: int | str) -> None:
        """The registry is a store to the retry policy: while it is away messages wait, and none becomes a letter."""
        unparsed = ImageJob(delivery, image_id="")
        attempt = Attempt(unparsed, _SCHEMA_REGISTRY, self._clock.monotonic_s(), schema=schema)
        if self._admitted(attempt):
            self._try(attempt)

    def _load_schema(self, attempt: Attempt) -> None:
        """Then the message is parsed again."""
        delivery = attempt.job.delivery
        if self._unwanted(attempt) or self._schemas is None or attempt.schema is None:
            self._end_attempt(attempt)
            self._leave(Abandoned(delivery))
            return
        self._enter_stage(delivery, "fetch")
        try:
            with self._observer.stage("fetch"):
                asked = self._schemas.load(attempt.schema)
        except Retryable as error:
            self._fetch_failed(attempt, error)
            return
        except InvalidMessage as error:
            self._end_attempt(attempt)
            self._reject(delivery, error, "parse")
            return
        if asked:
            self._served(attempt, self._clock.monotonic_s())
        else:
            self._end_attempt(attempt)  # another message's question was answered: that says nothing of now
        self._enter_decode_pool()
        self._decode_pool.submit(self._guard, self._parse, delivery)

    # --- fetch ------------------------------------------------------------------------------------------------------

    def _first_attempt(self, job: ImageJob) -> Attempt | None:
        """None for an inline image. Raises ReferenceRefused."""
        if job.uri is None:
            return None
        key = choose_store(self._stores, job.uri).health_key(job.uri)
        return Attempt(job, key, self._clock.monotonic_s())

    def _admitted(self, attempt: Attempt) -> bool:
        """Whether to try now; otherwise its store is presumed down and it waits."""
        self._enter_stage(attempt.job.delivery, "waiting")
        with self._retries_lock:
            admitted = self._retries.admit(attempt)
        if not admitted and not attempt.job.delivery.lease.wants_new_work:
            self.abandon_ended()  # it came after the others of its lease were let go of
        return admitted

    def _fetch(self, attempt: Attempt) -> None:
        job = attempt.job
        self._budget.begin_fetch(job.delivery)
        if self._unwanted(attempt):
            self._end_attempt(attempt)
            self._leave(Abandoned(job.delivery))
            return
        started_s = self._enter_stage(job.delivery, "fetch")
        try:
            uri = job.uri or ""
            store = choose_store(self._stores, uri)
            with self._observer.stage("fetch"):
                stored, answer = self._stored(store, job, uri)
        except Retryable as error:
            self._fetch_failed(attempt, error)
            return
        except InvalidMessage as error:
            self._end_attempt(attempt)
            self._reject(job.delivery, error, "fetch", job.image_id)
            return
        self._budget.hold(job.delivery, len(stored.body))
        now_s = self._clock.monotonic_s()
        if answer == "hit":
            self._end_attempt(attempt)  # says nothing of the store
        else:
            self._served(attempt, now_s)
        fetched = FetchedImage(job, stored.body, fetch_ms=(now_s - started_s) * 1000, version=stored.version)
        if job.delivery.suspect:
            self._await_sandbox(fetched, "fetch")
        else:
            self._enter_decode_pool()
            self._decode_pool.submit(self._guard, self._receive, fetched, "fetch")

    def _unwanted(self, attempt: Attempt) -> bool:
        """Whether a try is of no use. A lock that lapsed (`LockLease`) takes the image, not the question whether its
        store is back: else an outage would have another message's lock lapse for each question."""
        lease = attempt.job.delivery.lease
        if not lease.ended or not lease.wants_new_work:
            return lease.ended
        with self._retries_lock:
            return not self._retries.tells(attempt)

    def _stored(self, store: ImageStore, job: ImageJob, uri: str) -> tuple[StoredImage, Answer]:
        def fetch() -> StoredImage:
            return store.fetch(uri, max_bytes=self._max_image_bytes, deadline_s=self._fetch_deadline_s)

        if self._cache is None:
            return fetch(), "miss"
        return self._cache.fetch(key_of(job, store.health_key(uri)), fetch, wait_s=self._fetch_deadline_s)

    def _fetch_failed(self, attempt: Attempt, error: Retryable) -> None:
        delivery = attempt.job.delivery
        self._enter_stage(delivery, "waiting")
        self._budget.end_fetch(delivery)
        lapsed = delivery.lease.ended and delivery.lease.wants_new_work
        with self._retries_lock:
            known = attempt.store in self._retries.down_stores()
            letter = self._retries.failed(attempt, error, self._clock.monotonic_s(), last=lapsed)
            down = attempt.store in self._retries.down_stores()
        if not isinstance(error, StoreBusy):
            self._observer.retried("fetch")
        if down and not known:
            self._observer.store_down(attempt.store, error)
        if letter is not None:
            letter.__cause__ = error
            self._reject(delivery, letter, "fetch", attempt.job.image_id or None)
        elif not delivery.lease.wants_new_work:
            self.abandon_ended()  # it came back after the others of its lease were let go of
        if not isinstance(error, StoreBusy):
            self._fetch_next(attempt.store)

    def _served(self, attempt: Attempt, now_s: float) -> None:
        with self._retries_lock:
            back = self._retries.succeeded(attempt, now_s)
        if back:
            self._observer.store_back(attempt.store)
        self._fetch_next(attempt.store)

    def _end_attempt(self, attempt: Attempt) -> None:
        """It is over without the store having served it or failed to."""
        with self._retries_lock:
            known = self._retries.down_stores()
            self._retries.left(attempt)
            self._tell_stores_forgotten(known)
        self._fetch_next(attempt.store)

    def _fetch_next(self, store: str) -> None:
        """There is room at this store again: for one that found none."""
        with self._retries_lock:
            attempt = self._retries.next_crowded(store)
        if attempt is not None:
            self._try(attempt)

    def _tell_stores_forgotten(self, known: Mapping[str, float]) -> None:
        for store in known.keys() - self._retries.down_stores().keys():
            self._observer.store_forgotten(store)

    # --- decode -----------------------------------------------------------------------------------------------------

    def _await_sandbox(self, fetched: FetchedImage, stage: str) -> None:
        """Its turn comes after the suspects before it, however long they take. No batch waits for it meanwhile."""
        self._enter_stage(fetched.job.delivery, "waiting")
        self._sandbox_pool.submit(self._guard, self._receive, fetched, stage)

    def _receive(self, fetched: FetchedImage, stage: str) -> None:
        """Bytes are here: hold them to what the message promised, then decode."""
        job = fetched.job
        lease = job.delivery.lease
        if lease.ended or (job.delivery.suspect and not lease.wants_new_work):  # a suspect may have waited for long
            self._leave_decoding(job.delivery)
            self._leave(Abandoned(job.delivery))
            return
        self._enter_stage(job.delivery, "decode")
        if stage == "parse" and fetched.body is not job.delivery.value:  # a fetched one is on the books already
            self._budget.hold(job.delivery, len(fetched.body))
        try:
            verify(job, fetched.body, max_bytes=self._max_image_bytes)
            stage = "decode"
            if job.delivery.suspect:
                self._observer.sandboxed()
            image = self._decode(fetched)
        except InvalidMessage as error:
            self._leave_decoding(job.delivery)
            self._reject(job.delivery, error, stage, job.image_id)
            return
        if fetched.body is not job.delivery.value and image.body is None:
            self._budget.drop(job.delivery, len(fetched.body))
        self._budget.end_fetch(job.delivery)
        self._stage_of[id(job.delivery)] = ("batch", image.ready_s)
        with self._batch_changed:
            look = self._batcher.add(image)
            if not job.delivery.suspect:
                self._coming -= 1
            if self._model_waits and (look or not self._coming):
                self._batch_changed.notify()

    def _decode(self, fetched: FetchedImage) -> DecodedImage:
        """For the model that labels now. Raises what `ports.ImageDecoder` does."""
        number, serving = self._servings.enter()
        try:
            return self._decode_for(number, serving, fetched)
        except BaseException:
            self._servings.leave(number)
            raise

    def _decode_for(self, number: int, serving: Serving, fetched: FetchedImage) -> DecodedImage:
        job, started_s = fetched.job, self._clock.monotonic_s()
        self._hold_pixels(job.delivery, serving)
        with self._observer.stage("decode"):
            with self._decoder_for(job.delivery, serving) as decoder:
                image = decoder.open(fetched.body)
            reserved_bytes = image.header.decode_bytes
            self._budget.reserve(reserved_bytes)
            try:
                with self._decoder_for(job.delivery, serving):
                    decoded = image.decode()
            finally:
                self._budget.unreserve(reserved_bytes)
        self._observer.decoded(job, fetched.body)
        now_s = self._clock.monotonic_s()
        # Not of a suspect, which would be decoded again outside the sandbox.
        keep = (
            self._hand_off is not None
            and not job.delivery.suspect
            and self._hand_off.keeps(len(fetched.body) + reserved_bytes)
        )
        return DecodedImage(
            job=replace(job, data=None),  # the encoded bytes are not needed any more
            pixels=decoded.pixels,
            facts=decoded.facts,
            fetch_ms=fetched.fetch_ms,
            decode_ms=(now_s - started_s) * 1000,
            ready_s=now_s,
            version=fetched.version,
            serving=number,
            body=fetched.body if keep else None,
        )

    def _hold_pixels(self, delivery: Delivery, serving: Serving) -> None:
        """Room for the pixels that a model is given of an image, from the time on at which it is let in: what is let in
        must fit when it is decoded, too. A model that took over meanwhile may need more."""
        held = self._room_for_pixels.get(id(delivery), 0)
        if serving.inference.image_bytes > held:
            self._room_for_pixels[id(delivery)] = serving.inference.image_bytes
            self._budget.hold(delivery, serving.inference.image_bytes - held)

    @contextmanager
    def _decoder_for(self, delivery: Delivery, serving: Serving) -> Iterator[ImageDecoder]:
        """The sandbox for suspects, which has a deadline of its own; else our own threads, watched by `tick`."""
        if delivery.suspect:
            try:
                yield serving.sandbox
            except DecoderCrashed:
                self._observer.decoder_crashed()
                raise
            finally:
                self._sandbox_used_s = self._clock.monotonic_s()
            return
        with self._with_decoder_lock:
            self._with_decoder[id(delivery)] = (self._clock.monotonic_s(), delivery)
            self._mind_silence()
        try:
            yield serving.decoder
        finally:
            with self._with_decoder_lock:
                del self._with_decoder[id(delivery)]
                self._mind_silence()

    def _mind_silence(self) -> None:
        """A decoder that holds the interpreter's lock stops `tick` too."""
        if self._with_decoder:
            self._silence.heard()
        else:
            self._silence.over()

    # --- batch, infer -----------------------------------------------------------------------------------------------

    def _run_model(self) -> None:
        try:
            self._serve_batches()
        except BaseException as error:
            self._on_crash(error)

    def _serve_batches(self) -> None:
        while (batch := self._next_batch()) is not None:
            wanted = tuple(image for image in batch.images if not image.job.delivery.lease.ended)
            for image in batch.images:
                if image.job.delivery.lease.ended:
                    self._leave(Abandoned(image.job.delivery))
            number = batch.images[0].serving
            if wanted:
                self._infer(Batch(wanted, batch.closed_by), self._servings.of(number))
            self._servings.leave(number, len(batch.images))

    def _next_batch(self) -> Batch | None:
        with self._batch_changed:
            while not self._closed:
                now_s = self._clock.monotonic_s()
                batch = self._batcher.take(now_s, more_coming=self._coming > 0)
                if batch is not None:
                    return batch
                self._model_waits = True
                self._batch_changed.wait(self._batcher.due_in_s(now_s))
                self._model_waits = False
        return None

    def _infer(self, batch: Batch, serving: Serving) -> None:
        self._infer_since_s = now_s = self._clock.monotonic_s()
        for image in batch.images:
            self._stage_of[id(image.job.delivery)] = ("infer", now_s)
            self._observer.stage_seconds("queue", now_s - image.ready_s)
        with self._observer.stage("infer"):
            outcomes = serving.inference(batch)
        self._infer_since_s = None
        self._observer.batch(len(batch.images), serving.inference.padding(len(batch.images)))
        first_ready_s = min(image.ready_s for image in batch.images)
        self._largest_delay_s = max(self._largest_delay_s, self._clock.monotonic_s() - first_ready_s)
        for outcome in outcomes:
            self._leave(outcome)
        if self._hand_off is not None and serving is self.serving:
            self._hand_off.offer(batch.images, outcomes)

    # --- leaving ----------------------------------------------------------------------------------------------------

    def _reject(self, delivery: Delivery, error: InvalidMessage, stage: str, image_id: str | None = None) -> None:
        self._leave(Rejected(delivery, error, stage, image_id))

    def _leave(self, outcome: Outcome) -> None:
        delivery = outcome.delivery
        self._budget.end_fetch(delivery)
        self._room_for_pixels.pop(id(delivery), None)
        if delivery.part_of is None:
            self._on_outcome(outcome)  # first: at every moment a stage or the publisher has it
        else:
            self._part_left(outcome)
        self._stage_of.pop(id(delivery), None)

    def _enter_decode_pool(self) -> None:
        with self._batch_changed:
            self._coming += 1

    def _leave_decode_pool(self) -> None:
        with self._batch_changed:
            self._coming -= 1
            if self._model_waits and not self._coming:
                self._batch_changed.notify()  # nothing is on its way that could join those who wait

    def _leave_decoding(self, delivery: Delivery) -> None:
        if not delivery.suspect:
            self._leave_decode_pool()

    def _enter_stage(self, delivery: Delivery, stage: str) -> float:
        now_s = self._clock.monotonic_s()
        self._stage_of[id(delivery)] = (stage, now_s)
        return now_s

    def _guard(self, work: Callable[..., None], item: Delivery | ImageJob | Attempt | FetchedImage, *args: str) -> None:
        """What a pool's thread runs. A defect of ours must not die in silence with it, nor end the replica for a
        message that would then end the next one: it is that message's dead letter."""
        job = item.job if isinstance(item, Attempt | FetchedImage) else item
        delivery = job if isinstance(job, Delivery) else job.delivery
        try:
            work(item, *args)
        except Fatal as error:
            if not self._closed:
                self._on_crash(error)
        except Exception as error:
            if self._closed:
                return
            stage = self._stage_of.get(id(delivery), ("parse", 0.0))[0]
            if stage == "parse":
                self._leave_decode_pool()
            elif stage == "decode":
                self._leave_decoding(delivery)
            if isinstance(item, Attempt):
                self._end_attempt(item)
            failure = ProcessingFailed(f"{stage} failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._reject(delivery, failure, stage)
