"""The chaos harness: a three-broker cluster behind a fault proxy, seeded faults, and the verdict on each run.

In reading order: `plan` (what one run is, and the seeded schedule), `platform` (what the machine lets us do, with
`namespaces`, `disk` and `clock`), `cluster` and `proxy` (what is broken), `stage` (what is there while it runs),
`faults` (how each is begun and ended), `episode` (one run from start to verdict), `recovery` and `story` (what is said
of it), `campaign` and `report` (many of them), `bugs` and `cases` (seeded bugs that must be caught).
"""
