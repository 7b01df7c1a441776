"""`python -m consumer.bench.bare_loop`: a bare confluent-kafka loop, in a process whose CPU is its own."""

from base64 import b64decode
from dataclasses import asdict
from typing import Any

from consumer.adapters.bench_clients import bare_loop
from consumer.bench.children import answer_questions


def _run(asked: dict[str, Any]) -> dict[str, Any]:
    headers = tuple((name, b64decode(value)) for name, value in asked.pop("headers"))
    return asdict(bare_loop(**asked | {"value": b64decode(asked["value"]), "headers": headers}))


if __name__ == "__main__":
    answer_questions(_run)
