"""The model's digest."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from consumer.adapters.model_digest import file_sha256, folder_sha256, model_digest

BASE: dict[str, Any] = {
    "weights": {"saved_model.pb": "aa", "variables/x": "bb"},
    "labels": "cc",
    "preprocessing": {"resize": "bilinear", "mean": [0.5]},
    "precision": "f32",
}


def test_the_digest_is_the_one_it_always_was() -> None:
    canonical = (
        '{"labels":"cc","manifest":1,"precision":"f32","preprocessing":{"mean":[0.5],"resize":"bilinear"},'
        '"weights":{"saved_model.pb":"aa","variables/x":"bb"}}'
    )
    assert model_digest(**BASE) == "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"weights": {"saved_model.pb": "ab", "variables/x": "bb"}},
        {"weights": {"saved_model.pb": "aa"}},
        {"labels": ""},
        {"preprocessing": {"resize": "bicubic", "mean": [0.5]}},
        {"precision": "bf16"},
    ],
    ids=str,
)
def test_each_part_changes_the_digest(change: dict[str, Any]) -> None:
    assert model_digest(**{**BASE, **change}) != model_digest(**BASE)


def test_the_order_of_the_parts_does_not_matter() -> None:
    turned = {**BASE, "weights": dict(reversed(BASE["weights"].items()))}
    assert model_digest(**turned) == model_digest(**BASE)


def test_a_folder_is_hashed_file_by_file_without_its_random_id(tmp_path: Path) -> None:
    (tmp_path / "variables").mkdir()
    for name in ("saved_model.pb", "variables/x", "fingerprint.pb"):
        (tmp_path / name).write_text(name)
    hashes = folder_sha256(tmp_path)
    assert list(hashes) == ["saved_model.pb", "variables/x"]
    assert hashes["variables/x"] == hashlib.sha256(b"variables/x").hexdigest() == file_sha256(tmp_path / "variables/x")
