"""How close to the machine's limit the service runs: terms, roofline, the real service, and its latency.

workload ──> broker, filled ──> rounds of: stage terms ── bare loop ── the service ──> latency by load
                                    └──────── roofline: what these cores could do ────────┘
"""
