"""The sandbox: what a decoder does there, on purpose or not, ends the child at most, and is told rightly."""

import io
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from consumer.adapters.decode_sandbox import SandboxedDecoder
from consumer.adapters.image import PillowDecoder
from consumer.errors import DecoderCrashed, NotAnImage, SandboxFailed, TooManyPixels
from consumer.messages import Decoded
from tests.hostile_decoder import FACTORY, with_mark
from tests.processes import wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")

SIZE = (32, 32)
ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., SandboxedDecoder]


def _photograph(colour: tuple[int, int, int] = (200, 40, 90)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (48, 40), colour).save(file, "JPEG")
    return file.getvalue()


GOOD = _photograph()


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[SandboxedDecoder] = []

    def sandbox(*, factory: str = FACTORY, deadline_s: float = 30.0, **arguments: Any) -> SandboxedDecoder:
        made.append(
            SandboxedDecoder(
                factory,
                {"input_size": SIZE, **arguments},
                input_size=SIZE,
                memory_bytes=512 * 1024**2,
                deadline_s=deadline_s,
            )
        )
        return made[-1]

    yield sandbox
    for each in made:
        each.close()


def _pid(sandbox: SandboxedDecoder) -> int:
    assert sandbox._child is not None
    return sandbox._child._process.pid


def _is_well(sandbox: SandboxedDecoder) -> None:
    """A good image gives what it gives outside."""
    outside = PillowDecoder(SIZE)
    assert sandbox.measure(GOOD) == outside.measure(GOOD)
    _same(sandbox.decode(GOOD), outside.decode(GOOD))


def _same(one: Decoded, other: Decoded) -> None:
    assert np.array_equal(one.pixels, other.pixels)
    assert one.facts == other.facts


# --- what ends the child --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hole", "said"),
    [("segfault", "SIGSEGV"), ("killed", "SIGKILL"), ("leave", "ended with code 0")],
)
def test_an_image_that_ends_its_decoder_is_told_with_how_and_the_next_is_decoded(
    make: Make, hole: str, said: str
) -> None:
    sandbox = make()
    _is_well(sandbox)
    with pytest.raises(DecoderCrashed, match=said) as caught:
        sandbox.decode(with_mark(GOOD, hole))
    assert "input.formats" in str(caught.value), "what to do"
    _is_well(sandbox)


def test_a_header_can_end_it_too(make: Make) -> None:
    sandbox = make()
    with pytest.raises(DecoderCrashed, match="SIGSEGV"):
        sandbox.measure(with_mark(GOOD, "measure-segfault"))
    _is_well(sandbox)


@pytest.mark.parametrize("hole", ["spin", "sleep", "hold-the-lock"])
def test_an_image_that_hangs_its_decoder_is_given_up_at_the_deadline(make: Make, hole: str) -> None:
    sandbox = make(deadline_s=1.0)
    with pytest.raises(DecoderCrashed, match=r"within 1 s \(decode.deadline_ms\)"):
        sandbox.decode(with_mark(GOOD, hole))
    _is_well(sandbox)


def test_an_image_is_not_blamed_for_what_the_one_before_it_left(make: Make) -> None:
    """A decoder may write past its memory and come back; the next image that ends it is innocent."""
    sandbox = make()
    sandbox.decode(with_mark(GOOD, "ruin"))
    ruined = _pid(sandbox)
    _is_well(sandbox)
    assert _pid(sandbox) != ruined


def test_one_child_serves_all_images_until_one_ends_it(make: Make) -> None:
    sandbox = make()
    _is_well(sandbox)
    first = _pid(sandbox)
    with pytest.raises(NotAnImage):
        sandbox.decode(b"no image")
    _is_well(sandbox)
    assert _pid(sandbox) == first


# --- what it may not ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hole", ["write-a-file", "read-a-file", "open-a-socket"])
def test_nothing_can_be_opened_and_that_is_said_of_the_sandbox_not_of_the_image(
    make: Make, hole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sandbox = make()
    with pytest.raises(RuntimeError, match="the sandbox refused what the decoder asked for: OSError"):
        sandbox.decode(with_mark(GOOD, hole))
    assert list(tmp_path.iterdir()) == []
    _is_well(sandbox)


@pytest.mark.skipif(sys.platform != "linux", reason="the address space is bounded on Linux")
def test_memory_past_the_bound_is_a_letter_that_names_the_setting(make: Make) -> None:
    sandbox = make()
    with pytest.raises(TooManyPixels, match=r"input\.max_pixels"):
        sandbox.decode(with_mark(GOOD, "allocate"))
    with pytest.raises(RuntimeError, match="Cannot allocate memory"):
        sandbox.decode(with_mark(GOOD, "map-memory"))
    _is_well(sandbox)


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_where_the_system_refuses_a_network_of_its_own_the_rest_holds_and_it_is_said() -> None:
    # In a process of its own, which gives up its rights; a container runtime's refusal stands in for the kernel's word.
    script = """if True:
        import ctypes, sys
        from consumer.adapters import decode_child

        class Refusing:
            def __init__(self, *_args, **_options): pass
            def prctl(self, *_args): return 0
            def unshare(self, _flags): return -1

        ctypes.CDLL = Refusing
        limits = decode_child._give_up_rights(256 * 1024**2)
        try:
            open("/dev/null")
        except OSError:
            print(*limits, sep="\\n")
    """
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == [
        "no new privileges",
        "no network of its own, which the system refuses",
        "256 MiB",
        "no file or socket can be opened",
    ]


def test_it_knows_nothing_of_our_environment(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUZEL_KAFKA__CLIENT__SASL_PASSWORD", "planted-secret")
    with pytest.raises(NotAnImage) as caught:
        make().decode(with_mark(GOOD, "tell-environment"))
    assert "PYTHONPATH" in str(caught.value)
    assert "planted-secret" not in str(caught.value)


# --- what it says ---------------------------------------------------------------------------------------------------


def test_what_a_library_prints_is_no_answer(make: Make) -> None:
    marked = with_mark(GOOD, "print")
    _same(make().decode(marked), PillowDecoder(SIZE).decode(marked))


def test_a_defect_of_the_decoder_is_no_verdict_on_the_image(make: Make) -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a defect"):
        make().decode(with_mark(GOOD, "defect"))


@pytest.mark.parametrize("lie", ["lie-size", "lie-format"])
def test_a_header_that_makes_no_sense_is_not_believed(make: Make, lie: str) -> None:
    sandbox = make()
    with pytest.raises(DecoderCrashed, match="makes no sense"):
        sandbox.measure(with_mark(GOOD, lie))
    _is_well(sandbox)


@pytest.mark.parametrize("lie", ["lie-pixels", "lie-facts", "garbage"])
def test_pixels_and_facts_that_cannot_be_are_not_believed(make: Make, lie: str) -> None:
    sandbox = make()
    with pytest.raises(DecoderCrashed):
        sandbox.decode(with_mark(GOOD, lie))
    _is_well(sandbox)


# --- its life -------------------------------------------------------------------------------------------------------


def test_a_decoder_that_cannot_be_made_ends_the_replica_with_the_reason() -> None:
    sandbox = SandboxedDecoder("tests.no_such:Thing", {}, input_size=SIZE, memory_bytes=2**29, deadline_s=5.0)
    with pytest.raises(SandboxFailed, match=r"No module named 'tests\.no_such'") as caught:
        sandbox.measure(GOOD)
    assert caught.value.exit_code == 14
    assert caught.value.remedy


def test_closing_ends_the_child_even_in_the_midst_of_an_image_which_is_not_blamed(make: Make) -> None:
    sandbox = make()
    _is_well(sandbox)
    raised: list[BaseException] = []

    def work() -> None:
        try:
            sandbox.decode(with_mark(GOOD, "sleep"))
        except BaseException as error:
            raised.append(error)

    busy, pid = sandbox._one_at_a_time, _pid(sandbox)
    thread = threading.Thread(target=work)
    thread.start()
    wait_until(busy.locked, timeout_s=10, what="the image to be with the child")
    sandbox.close()
    thread.join(10)
    assert [type(error) for error in raised] == [RuntimeError]
    assert not Path(f"/proc/{pid}").exists() or sys.platform != "linux"
    _is_well(sandbox)  # the next image starts another


def test_an_idle_child_is_let_go_of_and_leaves_no_descriptor(make: Make) -> None:
    sandbox = make()
    _is_well(sandbox)
    sandbox.close()
    before = _descriptors()
    for _ in range(3):
        _is_well(sandbox)
        sandbox.close()
        sandbox.close()
    assert _descriptors() == before


def _descriptors() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends children with their parent on Linux")
def test_a_child_that_hangs_ends_with_a_replica_that_is_killed(tmp_path: Path) -> None:
    script = f"""
from consumer.adapters.decode_sandbox import SandboxedDecoder
from tests.hostile_decoder import FACTORY, with_mark
sandbox = SandboxedDecoder(FACTORY, {{"input_size": {SIZE}}}, input_size={SIZE}, memory_bytes=2**29, deadline_s=60.0)
good = {GOOD!r}
sandbox.decode(good)
print(sandbox._child._process.pid, flush=True)
sandbox.decode(with_mark(good, "sleep"))
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
        parent.wait(10)
        wait_until(lambda: _gone(pid), timeout_s=10, what="the child's end")
    finally:
        parent.kill()
        parent.wait(10)
        if parent.stdout is not None:
            parent.stdout.close()


def _gone(pid: int) -> bool:
    """No longer there, or only waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
