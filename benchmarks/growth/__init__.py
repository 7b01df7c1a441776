"""How cost grows: with the size of images and messages, partitions, replicas, backlog, labels, time.

    python -m benchmarks.growth CURVE     measures, writes its points as JSON and a picture of them
    python -m benchmarks.growth redraw    the pictures anew, from the JSON
    python -m benchmarks.growth tables    the tables of docs/performance.md and docs/scaling.md anew, from the JSON

Each curve is a module with `measure`, `draw` and a table; `curves.py` lists them. The real service and a real broker
are started for the purpose, by what `ouzel bench` has for it; nothing else should run beside them.
"""
