"""The service as the demo runs it: `ouzel run` in a child process, configured by its environment alone."""

import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import orjson

from consumer.demo.processes import Child
from consumer.extras import missing

INPUT_TOPIC = "images"
OUTPUT_TOPIC = "predictions"
DEAD_LETTER_TOPIC = "images.dlq"
TOPICS = (INPUT_TOPIC, OUTPUT_TOPIC, DEAD_LETTER_TOPIC)
RUN: tuple[str, ...] = ("-m", "consumer", "run")
DRAIN_S = 10.0
_CODE = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(bootstrap_servers: str, *, health_port: int, settings_file: Path, image_folder: Path) -> dict[str, str]:
    """The child's environment: ours, less every OUZEL_ setting, plus what the demo decides.

    `settings_file` is an empty one in an empty folder: settings, secrets and a `.env` that happen to lie about have no
    say in the demo.
    """
    ours = {name: value for name, value in os.environ.items() if not name.startswith("OUZEL_")}
    return ours | {
        "OUZEL_SETTINGS": str(settings_file),
        "OUZEL_SECRETS_DIR": str(settings_file.parent),
        # The child works in another folder, and runs this very code.
        "PYTHONPATH": os.pathsep.join(filter(None, (str(_CODE), ours.get("PYTHONPATH", "")))),
        "OUZEL_KAFKA__BOOTSTRAP_SERVERS": bootstrap_servers,
        "OUZEL_KAFKA__GROUP_ID": "ouzel-demo",
        "OUZEL_KAFKA__INPUT_TOPICS": orjson.dumps([INPUT_TOPIC]).decode(),
        "OUZEL_KAFKA__OUTPUT_TOPIC": OUTPUT_TOPIC,
        "OUZEL_KAFKA__DEAD_LETTER_TOPIC": DEAD_LETTER_TOPIC,
        # The mock keeps a fetch that finds nothing waiting, whatever comes meanwhile.
        "OUZEL_KAFKA__CONSUMER__FETCH_WAIT_MAX_MS": "20",
        "OUZEL_STORES__FILE__ROOTS": orjson.dumps([str(image_folder.resolve())]).decode(),
        "OUZEL_MODEL__SOURCE": "default",
        # A newcomer should not wait for several runtimes to be tried.
        "OUZEL_MODEL__RUNTIME": "auto" if missing("openvino") else "openvino",
        "OUZEL_HEALTH__HOST": "127.0.0.1",
        "OUZEL_HEALTH__PORT": str(health_port),
        "OUZEL_DRAIN__TIMEOUT_MS": str(int(DRAIN_S * 1000)),
        "OUZEL_LOG__FORMAT": "json",
    }


def start(arguments: Sequence[str], child_environment: Mapping[str, str], log: Path, working_folder: Path) -> Child:
    """Start the service; `arguments` follow `python`."""
    return Child(
        "service",
        arguments,
        log=log,
        environment=child_environment,
        working_folder=working_folder,
        stop_within_s=DRAIN_S + 5,
    )


def wait_until_ready(
    service: Child, health_port: int, *, within_s: float, on_progress: Callable[[str], None], now: Callable[[], float]
) -> None:
    """Wait until `/readyz` answers 200. `on_progress` gets what the service's log says meanwhile.

    Raises:
        Fatal: it ended, or is not ready within `within_s` seconds; with the end of its log.
    """
    deadline_s = now() + within_s
    while not is_ready(health_port):
        for line in service.new_log_lines():
            if text := log_message(line):
                on_progress(f"starting the service: {text}")
        if service.exit_code is not None:
            raise service.failure("the service ended before it was ready")
        if now() > deadline_s:
            raise service.failure(f"the service is not ready after {within_s:.0f} s")
        time.sleep(0.1)


def is_ready(health_port: int) -> bool:
    """Whether `/readyz` answers 200."""
    try:
        # No proxy from the environment stands between us and ourselves.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{health_port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def log_message(line: str) -> str:
    """The message of one JSON line of the service's log; empty for what is no such line (libraries' own chatter)."""
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError:
        return ""
    if not isinstance(entry, dict):
        return ""
    return str(entry.get("message") or entry.get("event") or "")
