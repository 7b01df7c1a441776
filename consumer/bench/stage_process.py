"""`python -m consumer.bench.stage_process FOLDER MEGAPIXELS [SETTINGS]`: stage terms in a process of their own.

It holds the model and decoder that the settings name; `FOLDER` has the workload. Nothing runs in it between questions.
"""

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from consumer import bootstrap, bootstrap_model
from consumer.bench.children import answer_on_workload
from consumer.bench.stages import Measured, measure_decode, measure_fetch, measure_infer
from consumer.bench.workload import Form, read_bodies, records
from consumer.clock import SystemClock
from consumer.cpu import quota_cores
from consumer.errors import SettingsError
from consumer.log import configure
from consumer.messages import Delivery, ImageJob, Labelled, Lease, Partition
from consumer.settings import load
from consumer.stages.batch import padded_sizes
from consumer.stages.events import EventContext, label_event
from consumer.stages.rank import top_labels

_SAMPLES = 32


class StageProcess:
    """Answers `facts`, `fetch`, `decode` and `infer`."""

    def __init__(self, folder: Path, megapixels: float, settings_file: Path | None) -> None:
        settings = load(settings_file)
        configure(settings.log.model_copy(update={"level": "WARNING", "file": ""}))
        if settings.schema_registry.url and settings.output.format != "json":
            raise SettingsError("events are measured as JSON", remedy='set output.format = "json" for the bench')
        self._settings = settings
        self._folder = folder
        self._megapixels = megapixels
        self.decode_threads = settings.pipeline.decode_threads or quota_cores()
        self.sizes = padded_sizes(settings.batch.max_size)
        self._model = bootstrap_model.load_model(settings)
        self._model.runtime.warm_up(self.sizes)
        self._parser = bootstrap.build_parser(settings, None)
        self._stores = bootstrap.build_stores(settings)
        import numpy as np

        bodies = read_bodies(folder, megapixels)
        self._decoded = [self._model.decoder.decode(body) for body in bodies]
        self._pixels = np.stack([each.pixels for each in self._decoded])

    def answer(self, asked: dict[str, Any]) -> Mapping[str, Any]:
        """One question."""
        what = asked.pop("ask")
        if what == "facts":
            return self._facts(asked["form"])
        stages: Mapping[str, Callable[..., Measured]] = {
            "fetch": self._fetch,
            "decode": self._decode,
            "infer": self._infer,
        }
        return asdict(stages[what](**asked))

    def _facts(self, form: Form) -> Mapping[str, Any]:
        runtime, settings = self._model.runtime, self._settings
        event = self._event(form)
        return {
            "model": asdict(runtime.info),
            "input_size": list(runtime.input_size),
            "decode_threads": self.decode_threads,
            "model_threads": settings.model.threads or quota_cores(),
            "batch_sizes": list(self.sizes),
            "event": b64encode(event.value or b"").decode(),
            "event_headers": [[name, b64encode(value or b"").decode()] for name, value in event.headers],
        }

    def _fetch(self, form: Form, seconds: float) -> Measured:
        return measure_fetch(
            self._parser,
            self._stores,
            self._deliveries(form),
            threads=self.decode_threads,
            seconds=seconds,
            max_bytes=self._settings.stores.max_image_bytes,
            deadline_s=self._settings.stores.fetch_deadline_ms / 1000,
        )

    def _decode(self, megapixels: float, seconds: float) -> Measured:
        bodies = read_bodies(self._folder, megapixels)
        return measure_decode(self._model.decoder, bodies, threads=self.decode_threads, seconds=seconds)

    def _infer(self, batch: int, seconds: float) -> Measured:
        return measure_infer(self._model.runtime, self._pixels, batch=batch, seconds=seconds)

    def _deliveries(self, form: Form) -> Sequence[Delivery]:
        lease = Lease(Partition("ouzel-bench-00000000-images", 0), epoch=0, topic_id="A" * 22)
        return [
            Delivery(
                lease=lease,
                offset=number,
                value=record.value,
                key=record.key.encode(),
                headers=record.headers,
                timestamp_ms=1_767_225_600_000,
                timestamp_type="create",
            )
            for number, record in enumerate(records(self._folder, self._megapixels, form, _SAMPLES))
        ]

    def _event(self, form: Form) -> Any:
        """A label event as the service writes it, for the bare loop: of this size."""
        kafka, model = self._settings.kafka, self._model
        context = EventContext(
            cluster_id="A" * 22,
            group_id=kafka.group_id,
            replica="bench",
            output_topic=kafka.output_topic,
            dead_letter_topic=kafka.dead_letter_topic,
            max_message_bytes=kafka.max_message_bytes,
            encoder=bootstrap.build_encoder(self._settings),
        )
        job = self._parser(self._deliveries(form)[-1])
        if not isinstance(job, ImageJob):
            raise TypeError("a message of the workload asks for one image")
        scores = model.runtime.infer(self._pixels[:1])
        rules = self._settings.model
        (labels,) = top_labels(scores, model.labels, rules.top_k, rules.min_score)
        timings_ms = {"fetch": 0.123, "decode": 4.567, "queue": 12.345, "infer": 23.456}
        labelled = Labelled(job, labels, self._decoded[0].facts, model.runtime.info, timings_ms)
        return label_event(labelled, context, SystemClock().utc_now())


if __name__ == "__main__":
    answer_on_workload(StageProcess)
