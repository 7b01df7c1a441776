"""W&B's real client in its child process, against a local server, well and badly; and children that misbehave."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from consumer.adapters.tracking.wandb_tracker import QUEUE_MOST_BYTES, QUEUE_MOST_ITEMS, RunFacts, WandbTracker, probe
from consumer.messages import ModelInfo
from tests import wandb_runs
from tests.processes import wait_until
from tests.wandb_runs_server import Mood, RunsServer

KEY = "0123456789abcdef0123456789abcdef01234567"
PATIENCE_S = 60.0
INFO = ModelInfo("birds", "1", "sha256:ab", "null", "f32")


class Dropped:
    """Counts, from any thread."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    def __call__(self, items: int) -> None:
        with self._lock:
            self.count += items


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the log says."""
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.record["message"]), level="INFO")
    yield lines
    logger.remove(sink)


def _facts(folder: Path, server: RunsServer | None = None, **changed: Any) -> RunFacts:
    values: dict[str, Any] = {
        "project": "birds",
        "entity": "",
        "group": "group",
        "name": "replica",
        "mode": "online" if server else "offline",
        "folder": folder,
        "config": {"settings": {"model.source": "wandb-artifact://team/models/birds:v1"}},
        "base_url": server.url if server else "",
        "api_key": KEY,
        "timeout_s": 10.0,
        "interval_s": 1.0,
        "finish_s": PATIENCE_S,
    }
    return RunFacts(**values | changed)


def _child(code: str) -> tuple[str, ...]:
    """A child that does this."""
    return (sys.executable, "-c", "import sys, os, time\n" + textwrap.dedent(code))


def _wait(said: list[str], text: str) -> None:
    wait_until(lambda: any(text in line for line in said), timeout_s=PATIENCE_S, what=f"{text!r} in the log")


def _began(said: list[str]) -> None:
    _wait(said, "run replica began")


# --- with the server ------------------------------------------------------------------------------------------------


def test_a_run_at_a_server_has_its_group_figures_model_lineage_and_the_systems_figures(
    tmp_path: Path, said: list[str]
) -> None:
    with RunsServer() as server:
        tracker = WandbTracker(_facts(tmp_path, server), dropped=Dropped())
        tracker.model(INFO, "wandb-artifact://team/models/birds:v1@sha256:ab")
        tracker.figures({"images_per_second": 3.0})
        _began(said)
        wait_until(lambda: bool(server.used), timeout_s=PATIENCE_S, what="the artifact that the run uses")
        tracker.model(ModelInfo("birds", "2", "sha256:cd", "null", "f32"), "/models/birds")
        tracker.close(PATIENCE_S)
        began = server.runs[0]
        assert (began["groupName"], began["displayName"], began["jobType"]) == ("group", "replica", "serve")
        assert began["project"] == "birds"
        # Of the program, the machine and the code nothing but what we say ourselves.
        assert (began["program"], began["host"], began["commit"], began["repo"]) == ("ouzel", "replica", None, None)
        assert server.used == ["team/models/birds:v1"]
        assert [row["images_per_second"] for row in server.history() if "images_per_second" in row] == [3.0]
        assert [row["model_changes"] for row in server.history() if "model_changes" in row] == [1]
        assert "sha256:cd" in server.runs[-1]["config"]
    [log] = wandb_runs.run_files(tmp_path)
    assert any(name.startswith("proc.memory") for name in wandb_runs.statistics(log))
    assert wandb_runs.config(log)["settings"] == {"model.source": "team/models/birds:v1"}
    assert not [line for line in said if "Labels are not affected" in line]


def test_the_key_is_in_no_file_of_the_run_and_in_no_argument(tmp_path: Path, said: list[str]) -> None:
    with RunsServer() as server:
        tracker = WandbTracker(_facts(tmp_path, server), dropped=Dropped())
        _began(said)
        family = wandb_runs.processes_of(tmp_path)
        assert len(family) >= 2  # the child, and W&B's own
        assert not [process for process in family if KEY in " ".join(process.cmdline())]
        tracker.close(PATIENCE_S)
    assert KEY.encode() not in wandb_runs.everything(tmp_path)
    assert KEY not in "\n".join(said)


@pytest.mark.parametrize("mood", ["hangs", "fails"])
def test_a_server_that_goes_bad_holds_no_end_beyond_its_bound_and_the_run_is_on_disk(
    mood: Mood, tmp_path: Path, said: list[str]
) -> None:
    with RunsServer() as server:
        tracker = WandbTracker(_facts(tmp_path, server, finish_s=2.0), dropped=Dropped())
        _began(said)
        server.mood = mood
        tracker.figures({"images_per_second": 3.0})
        began_s = time.monotonic()
        tracker.close(2.0)
        took_s = time.monotonic() - began_s
        wait_until(
            lambda: not wandb_runs.processes_of(tmp_path), timeout_s=PATIENCE_S, what="the end of all its processes"
        )
    assert took_s < 2.0 + 3.0  # the bound that is promised, and what a busy machine takes to kill a process
    assert [row["images_per_second"] for row in wandb_runs.history(tmp_path)] == [3.0]
    assert [line for line in said if "was not sent within 2 s" in line]


def test_where_the_server_takes_no_run_it_is_written_to_disk_and_nothing_is_lost(
    tmp_path: Path, said: list[str]
) -> None:
    dropped = Dropped()
    with RunsServer("hangs") as server:
        facts = _facts(tmp_path, server, timeout_s=1.0)
        tracker = WandbTracker(facts, dropped=dropped, waits_s=(0.0,))
        tracker.figures({"images_per_second": 3.0})
        _began(said)
        tracker.close(PATIENCE_S)
    warnings = [line for line in said if "Labels are not affected" in line]
    assert len(warnings) == 1
    assert "wandb sync" in warnings[0]
    assert [row["images_per_second"] for row in wandb_runs.history(tmp_path)] == [3.0]
    assert dropped.count == 0


def test_a_run_of_no_server_can_be_sent_to_one_later(tmp_path: Path) -> None:
    tracker = WandbTracker(_facts(tmp_path), dropped=Dropped())
    tracker.figures({"images_per_second": 3.0})
    tracker.close(PATIENCE_S)
    [log] = wandb_runs.run_files(tmp_path)
    with RunsServer() as server:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("WANDB_")},
            "WANDB_BASE_URL": server.url,
            "WANDB_API_KEY": KEY,
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_CACHE_DIR": str(tmp_path / "cache"),
        }
        sync = [sys.executable, "-m", "wandb", "sync", str(log.parent)]
        done = subprocess.run(
            sync, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert done.returncode == 0, done.stderr
        assert [row["images_per_second"] for row in server.history()] == [3.0]
        assert server.runs[0]["groupName"] == "group"


@pytest.mark.parametrize(("mood", "wrong"), [("well", None), ("refuses", "not logged in")])
def test_asking_whether_the_server_knows_us(mood: Mood, wrong: str | None, tmp_path: Path) -> None:
    with RunsServer(mood) as server:
        said = probe(_facts(tmp_path, server))
    assert (said is None) if wrong is None else (said is not None and wrong in said)


def test_asking_a_server_that_hangs_ends(tmp_path: Path) -> None:
    with RunsServer("hangs") as server:
        assert probe(_facts(tmp_path, server, timeout_s=1.0), start_s=8.0)
    wait_until(lambda: not wandb_runs.processes_of(tmp_path), timeout_s=PATIENCE_S, what="the end of its processes")


# --- the disk -------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_costs_figures_one_warning_and_nothing_else(tmp_path: Path, said: list[str]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        _cannot_be_written(disk, said)
        return
    try:
        dropped = Dropped()
        tracker = WandbTracker(_facts(disk / "runs"), dropped=dropped)
        _began(said)
        with (disk / "filler").open("wb", buffering=0) as filler:
            try:
                while filler.write(b"x" * 4096):
                    pass
            except OSError:
                pass
        for _ in range(3):
            tracker.figures({"images_per_second": 3.0})
        wait_until(lambda: dropped.count == 3, timeout_s=PATIENCE_S, what="three figures to be counted as lost")
        tracker.close(PATIENCE_S)
    finally:
        subprocess.run(["umount", str(disk)], check=True)  # noqa: S607
    assert len([line for line in said if "the disk is full" in line]) == 1


def _cannot_be_written(folder: Path, said: list[str]) -> None:
    """What can be had of it without the right to mount."""
    folder.chmod(0o500)
    dropped = Dropped()
    tracker = WandbTracker(_facts(folder), dropped=dropped, waits_s=())
    _wait(said, "Labels are not affected")
    tracker.figures({"images_per_second": 3.0})
    tracker.close(PATIENCE_S)
    assert dropped.count == 1


def test_a_folder_that_is_a_file_costs_the_run_and_nothing_else(tmp_path: Path, said: list[str]) -> None:
    folder = tmp_path / "file"
    folder.write_text("no folder")
    dropped = Dropped()
    tracker = WandbTracker(_facts(folder), dropped=dropped, waits_s=())
    tracker.figures({"images_per_second": 3.0})
    _wait(said, "the rest of it is dropped")
    wait_until(lambda: dropped.count == 1, timeout_s=PATIENCE_S, what="what waited to be counted")
    tracker.close(PATIENCE_S)


# --- children that misbehave ----------------------------------------------------------------------------------------

BEGINS = 'print(\'{"began": "here"}\', flush=True)\n'


def test_what_does_not_fit_is_dropped_and_counted_and_nobody_waits(tmp_path: Path) -> None:
    dropped = Dropped()
    tracker = WandbTracker(_facts(tmp_path), dropped=dropped, program=_child("time.sleep(600)"))
    for _ in range(QUEUE_MOST_ITEMS + 10):
        tracker.figures({"images_per_second": 3.0})
    assert dropped.count == 10
    tracker.close(0.0)
    assert dropped.count == QUEUE_MOST_ITEMS + 10


def test_images_are_bounded_by_their_bytes(tmp_path: Path) -> None:
    dropped = Dropped()
    tracker = WandbTracker(_facts(tmp_path), dropped=dropped, program=_child("time.sleep(600)"))
    body = bytes(QUEUE_MOST_BYTES // 4)
    for _ in range(6):
        tracker.image(body, {})
    assert dropped.count == 2
    tracker.close(0.0)


@pytest.mark.parametrize("code", ["time.sleep(600)", BEGINS + "time.sleep(600)"])
def test_a_child_that_takes_nothing_is_ended_and_started_anew_a_few_times(
    code: str, tmp_path: Path, said: list[str]
) -> None:
    dropped = Dropped()
    tracker = WandbTracker(_facts(tmp_path), dropped=dropped, program=_child(code), waits_s=(0.0,), patience_s=0.5)
    body = bytes(1 << 20)  # more than a pipe holds
    for _ in range(4):
        tracker.image(body, {})
    _wait(said, "the rest of it is dropped")
    wait_until(lambda: dropped.count == 4, timeout_s=PATIENCE_S, what="four images to be counted")
    tracker.figures({"images_per_second": 3.0})
    assert dropped.count == 5
    tracker.close(0.0)


def test_a_child_that_dies_is_started_anew_with_the_model_and_its_last_words_are_told(
    tmp_path: Path, said: list[str]
) -> None:
    heads = tmp_path / "heads"
    code = f"""
        line = sys.stdin.readline()
        open({str(heads)!r}, "a").write(line)
        print('{{"began": "here"}}', flush=True)
        for line in sys.stdin:
            if "figures" in line:
                print("no more memory", file=sys.stderr)
                sys.exit(9)
    """
    tracker = WandbTracker(_facts(tmp_path), dropped=Dropped(), program=_child(code), waits_s=(0.0,))
    tracker.model(INFO, "default")
    tracker.figures({"images_per_second": 3.0})
    _wait(said, "ended with code 9: no more memory; again in 0 s")
    wait_until(lambda: heads.read_text().count("\n") == 2, timeout_s=PATIENCE_S, what="a second child")
    tracker.close(PATIENCE_S)
    first, second = heads.read_text().splitlines()
    assert "sha256:ab" not in first
    assert "sha256:ab" in second
    assert KEY not in first


def test_a_run_that_is_stopped_at_the_server_stays_so(tmp_path: Path, said: list[str]) -> None:
    dropped = Dropped()
    tracker = WandbTracker(_facts(tmp_path), dropped=dropped, program=_child(BEGINS + "sys.exit(4)"))
    _wait(said, "stopped at the server")
    wait_until(lambda: _drops(tracker, dropped), timeout_s=PATIENCE_S, what="figures to be dropped")
    tracker.close(0.0)


def _drops(tracker: WandbTracker, dropped: Dropped) -> bool:
    tracker.figures({"images_per_second": 3.0})
    return dropped.count > 0


def test_w_and_bs_own_process_that_is_killed_costs_a_run_and_the_next_one_goes_on(
    tmp_path: Path, said: list[str]
) -> None:
    tracker = WandbTracker(_facts(tmp_path), dropped=Dropped(), waits_s=(0.0,))
    _began(said)
    for process in wandb_runs.processes_of(tmp_path):
        if process.name() == "wandb-core":
            process.kill()
    wait_until(
        lambda: _told(tracker) and len([line for line in said if "run replica began" in line]) == 2,
        timeout_s=PATIENCE_S,
        what="a second run",
    )
    tracker.figures({"images_per_second": 5.0})
    tracker.close(PATIENCE_S)
    assert len(wandb_runs.run_files(tmp_path)) == 2
    assert wandb_runs.history(tmp_path)[-1]["images_per_second"] == 5.0


def _told(tracker: WandbTracker) -> bool:
    tracker.figures({"images_per_second": 4.0})
    return True


PARENT = """
import sys, time
from pathlib import Path
from consumer.adapters.tracking.wandb_tracker import RunFacts, WandbTracker
folder, url, key = sys.argv[1:]
facts = RunFacts("birds", "", "group", "replica", "online", Path(folder), base_url=url, api_key=key)
tracker = WandbTracker(facts, dropped=lambda count: None)
tracker.figures({"images_per_second": 3.0})
time.sleep(600)
"""


def test_nothing_is_left_of_a_parent_that_is_killed_while_the_server_hangs(tmp_path: Path) -> None:
    with RunsServer() as server:
        command = [sys.executable, "-c", PARENT, str(tmp_path), server.url, KEY]
        parent = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            wait_until(
                lambda: bool(server.runs) and len(wandb_runs.processes_of(tmp_path)) >= 2,
                timeout_s=PATIENCE_S,
                what="the run to begin",
            )
            server.mood = "hangs"
        finally:
            parent.send_signal(signal.SIGKILL)
            parent.wait()
        wait_until(lambda: not wandb_runs.processes_of(tmp_path), timeout_s=PATIENCE_S, what="all to end")
