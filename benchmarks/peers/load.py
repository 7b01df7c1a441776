"""Loads an HTTP server: `python load.py PLAN.json`, in an environment of its own with aiohttp, as a process of its own.

The plan: `url`, `content_type`, `bodies` (files, sent in turn), `count`, `timeout_s`, and either `concurrency` (closed
loop: so many requests at all times) or `rate` with `seed` (open loop: requests leave when their time has come, whatever
the answers do, at exponential intervals). Times of the open loop count from when a request was to leave, so that a
server that is behind hides nothing.

The answer, a JSON line: `wall_s`, `cpu_s` (the driver's own), `latencies_ms`, `errors` (by what they were), `late_ms`
(how late the driver itself was, at most), and `first`, the answer to each file's first request.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp


async def load(plan: dict[str, Any], bodies: list[bytes]) -> dict[str, Any]:
    """Send these as the plan says."""
    latencies_ms: list[float] = []
    errors: Counter[str] = Counter()
    first: dict[int, str] = {}
    late_s = 0.0
    headers = {"content-type": plan["content_type"]}

    async def one(session: aiohttp.ClientSession, number: int, due_s: float) -> None:
        which = number % len(bodies)
        try:
            async with session.post(plan["url"], data=bodies[which], headers=headers) as answer:
                text = await answer.read()
            if answer.status != 200:
                errors[f"{answer.status} {text[:200].decode(errors='replace')}"] += 1
                return
            latencies_ms.append(1000 * (time.perf_counter() - due_s))
            first.setdefault(which, text.decode())
        except (aiohttp.ClientError, TimeoutError) as error:
            errors[f"{type(error).__name__}: {error}"[:200]] += 1

    async def lane(session: aiohttp.ClientSession, numbers: Any) -> None:
        for number in numbers:
            await one(session, number, time.perf_counter())

    timeout = aiohttp.ClientTimeout(total=plan["timeout_s"])
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        cpu_s, started_s = time.process_time(), time.perf_counter()
        if "rate" in plan:
            dice = random.Random(plan["seed"])  # noqa: S311  no secret
            due_s, sent = started_s, []
            for number in range(plan["count"]):
                due_s += dice.expovariate(plan["rate"])
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                late_s = max(late_s, time.perf_counter() - due_s)
                sent.append(asyncio.create_task(one(session, number, due_s)))
            await asyncio.gather(*sent)
        else:
            numbers = iter(range(plan["count"]))
            await asyncio.gather(*(lane(session, numbers) for _ in range(plan["concurrency"])))
        wall_s = time.perf_counter() - started_s
        cpu_s = time.process_time() - cpu_s
    return {
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "latencies_ms": latencies_ms,
        "errors": dict(errors),
        "late_ms": 1000 * late_s,
        "first": [first.get(which) for which in range(len(bodies))],
    }


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    answer = asyncio.run(load(given, [Path(path).read_bytes() for path in given["bodies"]]))
    sys.stdout.write(json.dumps(answer) + "\n")
