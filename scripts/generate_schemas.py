"""Writes the Avro and Protobuf forms of the published JSON Schemas: `.venv/bin/python scripts/generate_schemas.py`.

Needs nothing that is not installed with Ouzel itself. A test holds that what is in `schemas/` is current.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from consumer.adapters.schema_registry import formats  # noqa: E402  (from this checkout, whichever is installed)


def generated() -> dict[str, str]:
    """File name -> what it should hold."""
    files = {f"{name}.avsc": formats.avro_text(name) for name in formats.GENERATED}
    return files | {f"{name}.proto": formats.proto_text(name) for name in formats.GENERATED}


if __name__ == "__main__":
    for file, text in generated().items():
        (ROOT / "schemas" / file).write_text(text, encoding="utf-8")
