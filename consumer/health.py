"""What the probes answer. `/livez` asks whether the process should be restarted, `/readyz` whether it does its work."""

from typing import Any

from consumer.flow import Flow
from consumer.owner import Owner
from consumer.ports import Clock, MessageSource, ShareSource
from consumer.stages.publish import Publisher

Answer = tuple[bool, dict[str, Any]]


class Health:
    """Answers from any thread; before `attach` the model is still loading: alive, not ready."""

    def __init__(self, clock: Clock, *, loop_deadline_s: float, stage_deadline_s: float) -> None:
        self._clock = clock
        self._loop_deadline_s = loop_deadline_s
        self._stage_deadline_s = stage_deadline_s
        self._parts: tuple[Owner[Any], Flow, Publisher, MessageSource | ShareSource] | None = None

    def attach(
        self,
        pipeline: Owner[Any],
        flow: Flow,
        publisher: Publisher,
        source: MessageSource | ShareSource,
    ) -> None:
        """The model is warm and the loop begins."""
        self._parts = (pipeline, flow, publisher, source)

    def live(self) -> Answer:
        """Fails when the loop has not turned, an item has sat in one stage past its deadline, or a partition stands
        still though the broker has more of it and a rejoin did not help.

        Waiting for a store or a broker is progress: those items are not held by a stage.
        """
        if self._parts is None:
            return True, {"status": "loading the model"}
        pipeline, flow, _, _ = self._parts
        now_s = self._clock.monotonic_s()
        reasons = []
        if now_s - pipeline.turned_s > self._loop_deadline_s:
            reasons.append(f"the loop has not turned for {now_s - pipeline.turned_s:.0f} s (health.loop_deadline_ms)")
        for stage, since_s in flow.oldest().items():
            if now_s - since_s > self._stage_deadline_s:
                reasons.append(f"an image has been in {stage} for {now_s - since_s:.0f} s (health.stage_deadline_ms)")
        if pipeline.stalled:
            where = ", ".join(map(str, sorted(pipeline.stalled)))
            reasons.append(f"{where} stands still though the broker has more (health.stall_ms)")
        return not reasons, {"status": "stuck" if reasons else "alive", "reasons": reasons}

    def ready(self) -> Answer:
        """Model warm and group joined; a replica without partitions is ready, one that holds is not."""
        if self._parts is None:
            return False, {"status": "loading the model"}
        pipeline, flow, publisher, source = self._parts
        now_s = self._clock.monotonic_s()
        facts: dict[str, Any] = {"stores_down": sorted(flow.down_stores())}
        waiting_s = publisher.output_waiting_since_s()
        if waiting_s is not None:
            facts["output_waiting_s"] = round(now_s - waiting_s, 3)
        if pipeline.unresolved:
            facts["transaction_unresolved"] = True
        if not source.joined:
            return False, {"status": "joining the group", **facts}
        trip = publisher.trip
        if pipeline.holding or trip is not None:
            reason = trip.reason if trip is not None else "resuming"
            return False, {"status": "holding at the dead-letter limit", "reason": reason, **facts}
        return True, {"status": "ready", **facts}
