"""A real Apache Kafka's jars: where they are, and how Maven fetches them once."""

import fcntl
import os
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from consumer.errors import BrokerUnreachable

KAFKA_VERSION = "4.4.0"
"""The version that `kafka/pom.xml` names."""
RESOURCES = Path(__file__).resolve().parent / "kafka"
_FETCH_S = 600


class KafkaUnavailable(BrokerUnreachable):
    """No Kafka can be had here; the remedy says what to install."""


def find_java() -> str:
    """The `java` to use, of JAVA_HOME where that is set.

    Raises:
        KafkaUnavailable: there is none.
    """
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=str(Path(home) / "bin")) if home else shutil.which("java")
    if java is None:
        raise KafkaUnavailable("no Java", remedy="install a JRE, version 17 or later, or name a broker that runs")
    return java


def fetch_jars(folder: Path, *, say: Callable[[str], None] = lambda _text: None) -> Path:
    """The folder of Kafka's jars below `folder`; Maven fetches them at the first call (45 jars, 43 MB, about 10 s).

    Raises:
        KafkaUnavailable: they are not here and Maven is missing or fails.
    """
    jars = folder / KAFKA_VERSION
    if jars.is_dir():
        return jars
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaUnavailable("no Maven", remedy="install `mvn`, or name a broker that runs")
    folder.mkdir(parents=True, exist_ok=True)
    # One at a time: test processes start side by side.
    with (folder / "fetching.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not jars.is_dir():
            say(f"fetching Apache Kafka {KAFKA_VERSION} by Maven into {folder} (43 MB, once)")
            _fetch_to(jars, maven)
    return jars


def _fetch_to(jars: Path, maven: str) -> None:
    with tempfile.TemporaryDirectory(prefix="fetching-", dir=jars.parent) as scratch:
        fetched = Path(scratch) / "libs"
        answer = subprocess.run(  # noqa: S603  (no shell, and every argument is ours)
            [
                *(maven, "-q", "-B", "--strict-checksums", "-f", str(RESOURCES / "pom.xml")),
                "dependency:copy-dependencies",
                # A local repository of its own: what an interrupted Maven left in the user's does not come along.
                *("-DincludeScope=runtime", f"-DoutputDirectory={fetched}", f"-Dmaven.repo.local={scratch}/m2"),
            ],
            capture_output=True,
            text=True,
            timeout=_FETCH_S,
            check=False,
        )
        if answer.returncode != 0:
            raise KafkaUnavailable(
                f"Maven could not fetch Apache Kafka:\n{(answer.stdout + answer.stderr)[-2000:]}",
                remedy="let Maven reach a repository, or name a broker that runs",
            )
        for jar in fetched.glob("*.jar"):
            if not _is_whole(jar):
                raise KafkaUnavailable(f"Maven fetched {jar.name}, and it is not whole", remedy="try again")
        fetched.rename(jars)  # complete or not there at all


def _is_whole(jar: Path) -> bool:
    try:
        with zipfile.ZipFile(jar) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        return False
