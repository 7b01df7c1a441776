"""Buckets' notifications for tests, in the shape that their sources give them (`tests/data/README.md`)."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "data" / "bucket_events"


def notification(name: str) -> dict[str, Any]:
    """One of `tests/data/bucket_events`."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


def s3_record(key: str = "1.jpg", *, bucket: str = "photos", event: str = "ObjectCreated:Put") -> dict[str, Any]:
    """One record of AWS S3; the key form-encoded."""
    record: dict[str, Any] = notification("aws-s3")["Records"][0]
    record["eventName"] = event
    record["s3"]["bucket"]["name"] = bucket
    record["s3"]["object"] = {"key": key, "size": 7}
    return record
