"""Loads a Kafka topic in the open loop: `python -m benchmarks.peers.kafka_load PLAN.json`, as a process of its own.

The plan: `servers`, `input`, `output`, `partitions`, `bodies` (files, sent in turn), `headers`, `count`, `rate`,
`seed`, `timeout_s`. Messages leave when their time has come, at the same exponential intervals as in `load.py`; the
latency of one is from then until its event is read from the output topic, matched by key.

The answer is that of `load.py`.
"""

import json
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition


def load(plan: dict[str, Any]) -> dict[str, Any]:
    """Send what the plan says, and read what comes."""
    bodies = [Path(path).read_bytes() for path in plan["bodies"]]
    producer = Producer({"bootstrap.servers": plan["servers"], "linger.ms": 0, "message.max.bytes": 2**24})
    consumer = Consumer(
        {
            "bootstrap.servers": plan["servers"],
            "group.id": "latency",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 10,
        }
    )
    ends = [consumer.get_watermark_offsets(TopicPartition(plan["output"], n), 10)[1] for n in range(plan["partitions"])]
    consumer.assign([TopicPartition(plan["output"], number, end) for number, end in enumerate(ends)])
    due_s: dict[bytes, float] = {}
    latencies_ms: list[float] = []
    done = threading.Event()

    def read() -> None:
        waiting = plan["count"]
        while waiting and not done.is_set():
            for message in consumer.consume(100, timeout=0.002):
                now_s = time.perf_counter()
                key = message.key()
                began_s = due_s.pop(key, None) if isinstance(key, bytes) else None
                if message.error() is None and began_s is not None:
                    latencies_ms.append(1000 * (now_s - began_s))
                    waiting -= 1

    reader = threading.Thread(target=read)
    reader.start()
    dice = random.Random(plan["seed"])  # noqa: S311  no secret
    late_s, cpu_s, started_s = 0.0, time.process_time(), time.perf_counter()
    next_s = started_s
    for number in range(plan["count"]):
        next_s += dice.expovariate(plan["rate"])
        time.sleep(max(0.0, next_s - time.perf_counter()))
        late_s = max(late_s, time.perf_counter() - next_s)
        key = f"{plan['seed']}-{number}".encode()
        due_s[key] = next_s
        producer.produce(plan["input"], value=bodies[number % len(bodies)], key=key, headers=plan["headers"])
        producer.poll(0)
    producer.flush(plan["timeout_s"])
    reader.join(plan["timeout_s"])
    done.set()
    reader.join()
    wall_s = time.perf_counter() - started_s
    cpu_s = time.process_time() - cpu_s
    consumer.close()
    missing = plan["count"] - len(latencies_ms)
    return {
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "latencies_ms": latencies_ms,
        "errors": {"no event in time": missing} if missing else {},
        "late_ms": 1000 * late_s,
        "first": [],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(load(json.loads(Path(sys.argv[1]).read_text()))) + "\n")
