"""No server at all: the same decode and the same inference, batch after batch, in a process with nothing else to do.

What a server spends beyond this is its own. It reads a plan in a line of JSON on stdin (`bodies`: files, `count`) and
answers with wall and CPU seconds.
"""

import json
import sys
import time
from pathlib import Path

from same_model import SETTINGS, Model

if __name__ == "__main__":
    model = Model()
    size = SETTINGS["batch"]
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        plan = json.loads(line)
        bodies = [Path(path).read_bytes() for path in plan["bodies"]]
        cpu_s, started_s = time.process_time(), time.perf_counter()
        for start in range(0, plan["count"], size):
            model.label([bodies[number % len(bodies)] for number in range(start, min(start + size, plan["count"]))])
        wall_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
        print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s}), flush=True)
