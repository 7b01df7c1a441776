"""What the fault tests share: small photographs, and a cluster of three brokers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.harness.cluster import Brokers
from tests.conftest import or_skip
from tests.photographs import write_small


@pytest.fixture(scope="session")
def small_photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Cuts of real photographs, about 4 KB each."""
    return write_small(tmp_path_factory.mktemp("small-photographs"))


@pytest.fixture(scope="module")
def brokers() -> Iterator[Brokers]:
    """Three brokers of our own behind a fault proxy. They are large: a module has them, not the session."""
    with or_skip(Brokers) as running:
        yield running
