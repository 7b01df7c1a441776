"""The command line as a whole: quick to answer, clear when something is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from consumer import __version__

HEAVY = ("tensorflow", "confluent_kafka", "pydantic", "numpy", "PIL", "prometheus_client", "loguru", "rich.markdown")
PACKAGE_ROOT = Path(__file__).resolve().parent.parent.parent


def _ouzel(*arguments: str, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "consumer", *arguments],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(PACKAGE_ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_line_imports_nothing_heavy() -> None:
    code = f"import sys, consumer.cli; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE_ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_says_what_to_do_first_and_what_the_exit_codes_mean() -> None:
    done = _ouzel("--help")
    assert done.returncode == 0
    for word in ("ouzel demo", "ouzel doctor", "Exit codes", "no such topic"):
        assert word in done.stdout


def test_the_version_is_said() -> None:
    assert _ouzel("--version").stdout == f"ouzel {__version__}\n"


def test_settings_that_are_wrong_are_a_page_and_exit_code_2(tmp_path: Path) -> None:
    done = _ouzel("settings", folder=tmp_path, OUZEL_BATCH__MAX_SIZE="many", OUZEL_LOG__LEVLE="INFO")
    assert (done.returncode, done.stdout) == (2, "")
    assert "2 problems with the settings" in done.stderr
    assert "did you mean OUZEL_LOG__LEVEL?" in done.stderr
    assert "Traceback" not in done.stderr


def test_settings_are_listed_as_json_when_piped_with_secrets_masked(tmp_path: Path) -> None:
    done = _ouzel("settings", "--changed", folder=tmp_path, OUZEL_KAFKA__CLIENT__SASL_PASSWORD="hunter2")
    assert done.returncode == 0
    assert done.stdout == (
        '{"key":"kafka.client.sasl.password","value":"********",'
        '"from":"environment variable OUZEL_KAFKA__CLIENT__SASL_PASSWORD"}\n'
    )


def test_the_named_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[batch]\nmax_size = 3")
    done = _ouzel("--settings", "mine.toml", "settings", "--changed", folder=tmp_path)
    assert done.stdout == '{"key":"batch.max_size","value":3,"from":"mine.toml"}\n'


@pytest.mark.parametrize("command", [["topics", "create"], ["topics", "describe"], ["doctor"]])
def test_every_command_explains_itself(command: list[str]) -> None:
    assert "Usage" in _ouzel(*command, "--help").stdout


def test_the_demo_says_that_it_has_settings_of_its_own() -> None:
    assert "settings of its own" in " ".join(_ouzel("demo", "--help").stdout.replace("│", " ").split())


def test_the_doctor_says_what_is_wrong_with_the_settings_and_exits_with_1(tmp_path: Path) -> None:
    done = _ouzel("doctor", folder=tmp_path, OUZEL_BATCH__MAX_SIZE="0")
    assert done.returncode == 1
    assert '"check":"settings","result":"fail"' in done.stdout
    assert "Traceback" not in done.stderr


def test_without_a_broker_the_topics_command_says_so_and_exits_with_5(tmp_path: Path) -> None:
    done = _ouzel(
        "topics",
        "create",
        folder=tmp_path,
        OUZEL_KAFKA__BOOTSTRAP_SERVERS="127.0.0.1:1",
        OUZEL_KAFKA__REQUEST_TIMEOUT_MS="1000",
    )
    assert done.returncode == 5
    assert "no answer from the broker at 127.0.0.1:1" in done.stderr
    assert "fix: check kafka.bootstrap_servers" in done.stderr
