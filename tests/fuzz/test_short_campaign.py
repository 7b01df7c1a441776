"""A short count of damaged messages, and that the campaign sees what it is there to see."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import ImageCms

from tests.fuzz import corpus
from tests.fuzz.campaign import Tally, load
from tests.fuzz.mutate import mutated
from tests.fuzz.worker import Target

ROOT = Path(__file__).parents[2]
COUNT = 2_000
FEW = ("--count", "30", "--seed", "500", "--give-up-s", "0.5")


def campaign(folder: Path, *options: str, **environment: str) -> tuple[int, Tally]:
    command = [sys.executable, "-m", "tests.fuzz.campaign", "--folder", str(folder), *options]
    ended = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, check=False)
    assert ended.returncode in {0, 1}, ended.stderr.decode()
    return ended.returncode, load(folder)


def test_every_sample_is_taken_as_it_is() -> None:
    target = Target()
    refused = {name: target.feed(15, body) for name, body in target.samples}
    assert refused.pop("uri list") == "MalformedMessage"  # it wants its header
    assert refused.pop("bucket's events") == "several"
    assert set(refused.values()) == {"labelled", "referenced"}, refused


def test_no_sample_has_the_time_of_its_making_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = ImageCms.ImageCmsProfile.tobytes
    first = corpus.images()
    monkeypatch.setattr(
        ImageCms.ImageCmsProfile, "tobytes", lambda profile: made(profile)[:24] + b"\7\xd0" * 6 + made(profile)[36:]
    )
    assert corpus.images() == first
    (sequence,) = [body for _name, body in first if b"mvhd" in body]
    for box in (b"mvhd", b"tkhd", b"mdhd"):
        _before, _box, after = sequence.partition(box)
        assert after[4:20] == bytes(16), box  # an encoder's own clock, which nothing here can turn


def test_the_same_seed_gives_the_same_bytes() -> None:
    bodies = [body for _name, body in corpus.messages()]
    assert [mutated(seed, bodies) for seed in range(200)] == [mutated(seed, bodies) for seed in range(200)]
    assert len({mutated(seed, bodies)[1] for seed in range(200)}) > 150


def test_damaged_messages_crash_nothing_stall_nothing_and_raise_what_is_declared(tmp_path: Path) -> None:
    status, tally = campaign(tmp_path, "--count", str(COUNT))
    culprits = {path.name: path.read_text() for path in tmp_path.glob("*-*.txt")}
    assert (status, culprits) == (0, {})
    assert tally.count == sum(tally.outcomes.values()) == COUNT
    # The damage reaches everything: much still decodes, and every way of being no image is met.
    met = {"labelled", "NotAnImage", "TruncatedImage", "CorruptImage", "TooManyPixels", "MalformedMessage"}
    assert met <= tally.outcomes.keys()
    assert tally.outcomes["labelled"] > COUNT / 10


@pytest.mark.parametrize(
    ("fault", "found"), [("crash", "crashes"), ("stall", "stalls"), ("raise", "exceptions"), ("memory", "memory")]
)
def test_a_campaign_finds_what_is_seeded_names_the_culprit_and_goes_on(tmp_path: Path, fault: str, found: str) -> None:
    status, tally = campaign(tmp_path, *FEW, OUZEL_TEST_FUZZ_FAULT=f"{fault}:511")
    assert status == 1
    assert (tally.count, tally.next_seed, tally.found, getattr(tally, found)) == (30, 530, 1, 1)
    (culprit,) = tmp_path.glob("*-511.bin")
    bodies = [body for _name, body in [*corpus.images(), *corpus.messages()]]
    assert culprit.read_bytes() == mutated(511, bodies)[1]


def test_a_count_goes_on_where_it_was(tmp_path: Path) -> None:
    campaign(tmp_path, "--count", "40")
    _status, tally = campaign(tmp_path, "--count", "70")
    assert (tally.count, tally.next_seed, sum(tally.outcomes.values())) == (70, 70, 70)
