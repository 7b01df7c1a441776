"""The demo from start to end: broker, service, photographs out, answers in."""

import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from consumer.adapters.demo_client import DemoClient
from consumer.demo import service
from consumer.demo.processes import Child
from consumer.demo.results import Result, from_event, from_letter
from consumer.errors import SettingsError
from consumer.names import MEDIA_TYPES

PHOTOGRAPHS = Path(__file__).resolve().parent.parent / "data" / "photographs"
MAX_INLINE_BYTES = 1_000_000
"""Larger images go by reference. The embedded broker keeps 5 MiB a partition, and one that goes over it with a single
record loses that very record (run: a 12 MB one, and the small one after it was never to be had)."""
MAX_UNANSWERED_BYTES = 3_000_000
"""No more than this is under way at once: the broker drops what it has no room for, read or not."""


@dataclass(frozen=True, slots=True)
class Running:
    """A demo that is up."""

    bootstrap_servers: str
    health_port: int
    broker: Child
    service: Child
    ready_s: float
    """Seconds from the service's start to its being ready."""


def find_images(folder: Path) -> dict[str, Path]:
    """Every image below `folder` by its id, which is its path in it; in order.

    Raises:
        SettingsError: there is none.
    """
    found = {
        # A name that is no UTF-8 has its odd bytes spelt out.
        os.fsencode(path.relative_to(folder).as_posix()).decode("utf-8", "backslashreplace"): path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in MEDIA_TYPES and path.is_file()
    }
    if not found:
        raise SettingsError(
            f"no image in {folder}", remedy=f"give a folder with one of {' '.join(MEDIA_TYPES)}: --images"
        )
    return found


@contextmanager
def running(
    on_progress: Callable[[str], None],
    *,
    image_folder: Path,
    ready_within_s: float,
    service_arguments: Sequence[str] | None = None,
) -> Iterator[Running]:
    """Broker and service, up and ready; both are gone when the block is left, whichever way it is left.

    The service may read files below `image_folder`. `service_arguments` follow `python`; None is `ouzel run`.

    Raises:
        Fatal: one of them does not come up; with the end of its log.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ouzel-demo-")))
        on_progress("starting an embedded Kafka broker")
        broker = stack.enter_context(
            Child(
                "embedded broker",
                ["-m", "consumer.demo.broker", *service.TOPICS],
                log=folder / "broker.log",
                read_stdout=True,
            )
        )
        bootstrap_servers = str(orjson.loads(broker.first_line())["bootstrap_servers"])

        on_progress("starting the service")
        began_s = time.monotonic()
        health_port = service.free_port()
        empty = folder / "empty"
        empty.mkdir()
        settings_file = empty / "settings.toml"
        settings_file.touch()
        child_environment = service.environment(
            bootstrap_servers, health_port=health_port, settings_file=settings_file, image_folder=image_folder
        )
        process = stack.enter_context(
            service.start(
                service_arguments or service.RUN, child_environment, folder / "service.log", working_folder=empty
            )
        )
        service.wait_until_ready(
            process, health_port, within_s=ready_within_s, on_progress=on_progress, now=time.monotonic
        )
        yield Running(bootstrap_servers, health_port, broker, process, time.monotonic() - began_s)


def label(
    demo: Running, images: Mapping[str, Path], *, silent_for_s: float, on_result: Callable[[Result], None]
) -> list[Result]:
    """Send every image and wait for every answer; `on_result` sees each as it comes.

    Raises:
        Fatal: nothing came for `silent_for_s` seconds while answers were due, or a process ended.
    """
    with DemoClient(
        demo.bootstrap_servers,
        read_topics=[service.OUTPUT_TOPIC, service.DEAD_LETTER_TOPIC],
    ) as client:
        return _Exchange(demo, client, images, silent_for_s).run(on_result)


class _Exchange:
    """Images on their way out and answers on their way in, within the bound of what the broker keeps."""

    def __init__(self, demo: Running, client: DemoClient, images: Mapping[str, Path], silent_for_s: float) -> None:
        self._demo = demo
        self._client = client
        self._to_send = deque(images.items())
        self._silent_for_s = silent_for_s
        self._unanswered: dict[str, int] = {}  # bytes in the broker, by image id
        self._sent_s: dict[str, float] = {}
        self._results: dict[str, Result] = {}
        self._failures: list[str] = []

    def run(self, on_result: Callable[[Result], None]) -> list[Result]:
        last_answer_s = time.monotonic()
        while self._to_send or self._unanswered:
            self._send_what_fits()
            result = self._next_result()
            if result is not None:
                last_answer_s = time.monotonic()
                self._results[result.image_id] = result
                on_result(result)
            self._check(silent_s=time.monotonic() - last_answer_s)
        return [self._results[image_id] for image_id in self._sent_s]

    def _send_what_fits(self) -> None:
        while self._to_send:
            image_id, path = self._to_send[0]
            size_bytes = path.stat().st_size
            inline = size_bytes <= MAX_INLINE_BYTES
            weight = size_bytes if inline else 0
            if self._unanswered and sum(self._unanswered.values()) + weight > MAX_UNANSWERED_BYTES:
                return
            self._to_send.popleft()
            value = path.read_bytes() if inline else _reference(image_id, path)
            self._unanswered[image_id] = weight
            self._sent_s[image_id] = time.monotonic()
            self._client.send(
                service.INPUT_TOPIC,
                image_id,
                value,
                content_type="" if inline else "application/json",
                on_failure=self._failures.append,
            )

    def _next_result(self) -> Result | None:
        answer = self._client.poll(0.1)
        if answer is None:
            return None
        now_s = time.monotonic()
        if answer.topic == service.OUTPUT_TOPIC:
            result = from_event(answer.value, sent_s=self._sent_s, now_s=now_s)
        else:
            result = from_letter(answer.headers, sent_s=self._sent_s, now_s=now_s)
        if result is None or self._unanswered.pop(result.image_id, None) is None:
            return None  # a redelivery: its first answer stands
        return result

    def _check(self, *, silent_s: float) -> None:
        if self._failures:
            raise self._demo.broker.failure(f"the embedded broker did not take an image: {self._failures[0]}")
        for child in (self._demo.broker, self._demo.service):
            if child.exit_code is not None:
                raise child.failure(f"the {child.name} ended while images were under way")
        if silent_s > self._silent_for_s:
            waiting = ", ".join(list(self._unanswered)[:5])
            raise self._demo.service.failure(
                f"no answer for {self._silent_for_s:.0f} s; {len(self._unanswered)} images wait: {waiting}"
            )


def _reference(image_id: str, path: Path) -> bytes:
    """An image-reference message to a file."""
    return orjson.dumps({"image_id": image_id, "uri": path.resolve().as_uri()})
