"""`ouzel demo` over the embedded broker and a stand-in service: what it shows, and that it leaves nothing behind."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

DEADLINE_S = 60
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    (folder / "more").mkdir(parents=True)
    for name in ("cat.jpg", "more/cup.png"):
        Image.new("RGB", (320, 240), (90, 120, 40)).save(folder / name)
    (folder / "notes.txt").write_text("no image by its name")
    return folder


class Demo:
    """A demo under way, and every process it started."""

    def __init__(self, photographs: Path, *options: str, stdout: int = subprocess.PIPE) -> None:
        self.page = photographs.parent / "page.html"
        command = ("demo", "--images", str(photographs), "--output", str(self.page), *options)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fake_demo", *command],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OUZEL_KAFKA__INPUT_TOPICS": '["of-another"]', "COLUMNS": "200"},
        )
        self.seen: list[psutil.Process] = []

    def until_stderr_has(self, text: str) -> str:
        assert self.process.stderr
        lines = []
        for line in self.process.stderr:
            lines.append(line)
            if text in line:
                self.seen = psutil.Process(self.process.pid).children(recursive=True)
                return "".join(lines)
        raise AssertionError(f"ended without {text!r}: {''.join(lines)}")

    def end(self) -> tuple[int, str, str]:
        stdout, stderr = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, stdout, stderr

    def discard(self) -> None:
        for process in self.seen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with self.process:  # closes its pipes and waits
            self.process.kill()

    def left_behind(self) -> list[psutil.Process]:
        _, alive = psutil.wait_procs(self.seen, timeout=DEADLINE_S)
        return alive


Start = Callable[..., Demo]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts demos, and ends those that a failing test leaves."""
    with contextlib.ExitStack() as started:

        def start_one(*arguments: Any, **options: Any) -> Demo:
            demo = Demo(*arguments, **options)
            started.callback(demo.discard)
            return demo

        yield start_one


def test_every_photograph_gets_a_line_and_a_place_on_the_page(start: Start, photographs: Path) -> None:
    demo = start(photographs)
    code, stdout, stderr = demo.end()
    assert code == 0, stderr
    rows = [json.loads(line) for line in stdout.splitlines()]
    assert [row["image"] for row in rows] == ["cat.jpg", "more/cup.png"]
    assert all(row["event"]["image_id"] == row["image"] and row["latency_ms"] > 0 for row in rows)
    page = demo.page.read_text()
    assert page.count("data:image/webp;base64,") == 2
    assert demo.page.as_uri() in stderr


def test_a_person_sees_a_table(start: Start, photographs: Path) -> None:
    ours, theirs = pty.openpty()
    demo = start(photographs, stdout=theirs)
    os.close(theirs)
    seen = b""
    while chunk := _read(ours):
        seen += chunk
    code, _, stderr = demo.end()
    assert code == 0, stderr
    assert b"cat.jpg" in seen
    assert b"tabby, tabby cat" in seen
    assert b"90.0%" in seen
    assert b"{" not in seen


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # EIO: the other end is closed
        return b""


def test_an_image_that_is_refused_shows_its_reason_and_ends_with_code_1(start: Start, photographs: Path) -> None:
    (photographs / "refused.jpg").write_bytes(b"torn")
    demo = start(photographs)
    code, stdout, _ = demo.end()
    assert code == 1
    errors = {row["image"]: row.get("error") for row in map(json.loads, stdout.splitlines())}
    assert errors == {"cat.jpg": None, "more/cup.png": None, "refused.jpg": "NotAnImage: cut short"}
    assert "NotAnImage: cut short" in demo.page.read_text()


def test_more_than_the_broker_keeps_goes_through_it(start: Start, photographs: Path) -> None:
    noise = os.urandom(900_000)  # the stand-in looks at names, not at bytes
    for number in range(40):
        (photographs / f"large-{number}.jpg").write_bytes(noise)
    (photographs / "larger.jpg").write_bytes(os.urandom(12_000_000))
    demo = start(photographs)
    code, stdout, stderr = demo.end()
    assert code == 0, stderr
    assert len(stdout.splitlines()) == 43


def test_a_service_that_ends_is_an_error_with_the_end_of_its_log(start: Start, photographs: Path) -> None:
    (photographs / "crash.jpg").write_bytes(b"x")
    demo = start(photographs)
    demo.until_stderr_has("Service ready")
    code, stdout, stderr = demo.end()
    assert code == 70
    assert stdout == ""
    assert "the service ended while images were under way (exit code 1)" in stderr
    assert "the seeded crash" in stderr
    assert "Traceback" not in stderr
    assert demo.left_behind() == []


def test_an_answer_that_never_comes_is_an_error_that_names_the_image(start: Start, photographs: Path) -> None:
    (photographs / "silent.jpg").write_bytes(b"x")
    demo = start(photographs, "--silent-for-s", "1")
    demo.until_stderr_has("Service ready")
    code, _, stderr = demo.end()
    assert code == 70
    assert "silent.jpg" in stderr
    assert demo.left_behind() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_kept_broker_and_service_stay_until_a_signal_and_end_with_it(
    start: Start, photographs: Path, number: int
) -> None:
    demo = start(photographs, "--keep")
    told = demo.until_stderr_has("Ctrl-C stops both.")
    assert "kcat -b 127.0.0.1:" in told
    assert len(demo.seen) == 2
    assert all(process.is_running() for process in demo.seen)
    demo.process.send_signal(number)
    code, _, stderr = demo.end()
    assert code == 0, stderr
    assert demo.left_behind() == []


def test_an_interrupt_while_images_are_under_way_leaves_nothing_behind(start: Start, photographs: Path) -> None:
    (photographs / "silent.jpg").write_bytes(b"x")
    demo = start(photographs)
    demo.until_stderr_has("Service ready")
    demo.process.send_signal(signal.SIGINT)
    code, _, stderr = demo.end()
    assert code == 130
    assert "Traceback" not in stderr
    assert demo.left_behind() == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent was killed")
def test_a_demo_that_is_killed_outright_leaves_nothing_behind(start: Start, photographs: Path) -> None:
    demo = start(photographs, "--keep")
    demo.until_stderr_has("Ctrl-C stops both.")
    demo.process.kill()
    demo.end()
    assert demo.left_behind() == []


def test_a_folder_without_images_is_said_before_anything_starts(start: Start, tmp_path: Path) -> None:
    demo = start(tmp_path)
    code, _, stderr = demo.end()
    assert code == 2
    assert "no image in" in stderr
    assert "broker" not in stderr


def test_a_page_that_cannot_be_written_is_said_before_anything_starts(start: Start, photographs: Path) -> None:
    demo = start(photographs, "--output", str(photographs / "nowhere" / "page.html"))
    code, _, stderr = demo.end()
    assert code == 2
    assert "cannot write the page" in stderr
    assert "broker" not in stderr


@pytest.mark.tensorflow
def test_the_cat_is_a_cat_and_the_cup_an_espresso_whatever_settings_lie_about(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('[model]\nsource = "/nowhere"\n')
    (tmp_path / ".env").write_text("OUZEL_MODEL__LABELS=/nowhere\n")
    done = subprocess.run(
        [sys.executable, "-m", "consumer", "demo", "--output", "page.html"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OUZEL_BATCH__MAX_SIZE": "none"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    best = {row["image"]: row["event"]["labels"][0]["label"] for row in map(json.loads, done.stdout.splitlines())}
    assert "cat" in best["chelsea.jpg"]
    assert best["coffee.jpg"] == "espresso"
    assert "espresso" in (tmp_path / "page.html").read_text()
