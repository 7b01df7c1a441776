"""`python -m consumer.bench.generator`: an open-loop load and the reader of its answers, in a process of their own."""

import gc
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from consumer.adapters.bench_clients import open_loop
from consumer.bench.children import answer_questions
from consumer.bench.open_loop import send_times
from consumer.bench.workload import records

_WARM = 8


def _run(asked: dict[str, Any]) -> dict[str, Any]:
    due_s = send_times(asked["rate"], asked["seconds"], seed=asked["seed"])
    made = partial(records, Path(asked["folder"]), asked["megapixels"], asked["form"])
    messages, warm = list(made(len(due_s), prefix=asked["prefix"])), list(made(_WARM, prefix=f"{asked['prefix']}-warm"))
    gc.disable()  # a collection of ours would be taken for the service's latency
    return asdict(
        open_loop(
            asked["producer_properties"],
            asked["reader_properties"],
            input_topic=asked["input_topic"],
            read_topic=asked["read_topic"],
            records=messages,
            due_s=due_s,
            silent_s=asked["silent_s"],
            warm=warm,
        )
    )


if __name__ == "__main__":
    answer_questions(_run)
