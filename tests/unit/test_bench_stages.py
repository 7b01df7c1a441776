"""Measuring a stage: everything is worked on, with the threads asked for, and what fails is not hidden."""

import io
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from consumer.adapters.runtimes.null_runtime import NullRuntime
from consumer.adapters.stores.file_store import FileStore
from consumer.bench.stages import measure, measure_fetch, measure_infer
from consumer.bench.workload import FORMS, Form, make_workload, read_bodies, records
from consumer.errors import ReferenceRefused, SettingsError
from consumer.messages import Delivery, ImageJob, Lease, Partition
from consumer.stages.parse import Parser


def test_each_thread_works_and_every_item_gets_its_turn() -> None:
    seen: Counter[int] = Counter()
    threads: set[int] = set()
    both = threading.Barrier(2, timeout=30)
    met = threading.local()

    def work(item: int) -> None:
        if not getattr(met, "already", False):
            met.already = True
            both.wait()  # neither goes on before the other has begun
        threads.add(threading.get_ident())
        seen[item] += 1

    found = measure(work, [1, 2, 3], threads=2, seconds=0.05)
    assert len(threads) == 2
    assert found.images == seen.total()
    assert set(seen) == {1, 2, 3}
    assert found.wall_s >= 0.05
    assert found.p99_ms >= found.p50_ms >= 0
    assert found.cpu_ms == pytest.approx(1000 * found.cpu_s / found.images)


def test_work_that_fails_fails_the_measurement() -> None:
    def work(_item: int) -> None:
        raise ReferenceRefused("no")

    with pytest.raises(ReferenceRefused):
        measure(work, [1], threads=2, seconds=0.01)


def test_inference_is_measured_in_whole_batches() -> None:
    batches = []

    class Counting(NullRuntime):
        def infer(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            batches.append(pixels.shape)
            return super().infer(pixels)

    found = measure_infer(Counting(), np.zeros((3, 8, 8, 3), np.uint8), batch=4, seconds=0.01)
    assert set(batches) == {(4, 8, 8, 3)}
    assert found.images == 4 * len(batches)


# --- the workload ---------------------------------------------------------------------------------------------------


def delivery_of(record_number: int, folder: Path, form: Form) -> Delivery:
    record = list(records(folder, 0.02, form, record_number + 1))[-1]
    lease = Lease(Partition("images", 0), epoch=0, topic_id="")
    return Delivery(lease=lease, offset=0, value=record.value, key=record.key.encode(), headers=record.headers)


@pytest.mark.parametrize("form", FORMS)
def test_a_message_of_each_form_asks_for_its_image(form: Form, tmp_path: Path) -> None:
    make_workload(None, tmp_path, megapixels=0.02, sizes=())
    delivery = delivery_of(1, tmp_path, form)
    job = Parser()(delivery)
    assert isinstance(job, ImageJob)
    assert job.image_id == "image-1"
    store = FileStore([str(tmp_path)])
    body = job.data if job.uri is None else store.fetch(job.uri, max_bytes=10**6, deadline_s=10).body
    assert body == read_bodies(tmp_path, 0.02)[1]
    found = measure_fetch(Parser(), [store], [delivery], threads=1, seconds=0.01, max_bytes=10**6, deadline_s=10)
    assert found.images >= 1


def test_images_are_distinct_and_of_the_size_asked_for(tmp_path: Path) -> None:
    workload = make_workload(None, tmp_path, megapixels=0.02, sizes=(0.02, 1.5))
    assert workload.sizes == [0.02, 1.5]
    assert len(set(workload.bodies)) == len(workload.bodies) == 16
    for megapixels in workload.sizes:
        for body in read_bodies(tmp_path, megapixels):
            with Image.open(io.BytesIO(body)) as image:
                assert image.format == "JPEG"
                assert image.width * image.height == pytest.approx(megapixels * 1e6, rel=0.02)


def test_a_photograph_that_is_too_small_keeps_its_detail(tmp_path: Path) -> None:
    """Blown up, a byte would hold more and more pixels; continued in its mirror image it holds as many."""
    make_workload(None, tmp_path, megapixels=0.1, sizes=(0.1, 4.0))
    small, large = (sum(map(len, found)) / len(found) for found in (read_bodies(tmp_path, mp) for mp in (0.1, 4.0)))
    assert large / 4.0 > 0.4 * small / 0.1


def test_without_photographs_there_is_noise_and_it_is_named_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumer.bench.workload.PHOTOGRAPHS", tmp_path / "absent")
    workload = make_workload(None, tmp_path / "images", megapixels=0.02, sizes=())
    assert "noise" in workload.source
    assert len(set(workload.bodies)) == 16


def test_a_folder_without_an_image_that_can_be_decoded_is_refused(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "a.jpg").write_bytes(b"no image")
    with pytest.raises(SettingsError, match="can be decoded"):
        make_workload(mine, tmp_path / "images", megapixels=0.02, sizes=())
