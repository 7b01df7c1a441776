"""How each kind of fault is begun and ended. `plan.KINDS` says how it is drawn.

None of them waits for what it does: that would hold up the others.
"""

import random
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

from tests.chaos.harness.namespaces import WIRES, Wire
from tests.chaos.harness.plan import APIS, Fault
from tests.chaos.harness.proxy import Rule
from tests.chaos.harness.stage import Member, Stage
from tests.kafka_broker import KafkaNode

_PATIENCE_S = 20.0
"""For what ends in order; then it is killed."""


class Action:
    """One fault while it is on."""

    def __init__(self, stage: Stage, fault: Fault) -> None:
        self.stage = stage
        self.params: Mapping[str, Any] = fault.params
        self.fault = fault

    @property
    def member(self) -> Member:
        """The replica that it is about."""
        number: int = self.params["replica"]
        return self.stage.members[number]

    def begin(self) -> None:
        """It begins."""

    def tick(self, now_s: float) -> None:
        """A few times a second while it is on."""

    def may_end(self, overdue_s: float) -> bool:
        """Whether `end` would wait for nothing. Asked from its time on, until it says so."""
        return True

    def end(self) -> None:
        """It is over: everything is as before, or on its way there."""


# --- replicas -------------------------------------------------------------------------------------------------------


class _Killed(Action):
    def begin(self) -> None:
        self.member.kill()

    def end(self) -> None:
        self.member.start()


class _KilledAtPoint(Action):
    """Where the point is not passed in time, it is killed wherever it is."""

    def begin(self) -> None:
        self.member.wanted = False  # the supervisor waits for the fault's end
        self.member.tell(crash_at=f"{self.params['point']}:{self.params['count']}")

    def end(self) -> None:
        self.member.kill()
        self.member.tell()
        self.member.start()


class _Frozen(Action):
    def begin(self) -> None:
        self.member.freeze()

    def end(self) -> None:
        self.member.thaw()


class _OwnerStill(Action):
    def begin(self) -> None:
        self.member.tell(still_owner_s=self.fault.for_s)

    def end(self) -> None:
        self.member.tell()


class _Restarted(Action):
    def begin(self) -> None:
        self.member.terminate()

    def may_end(self, overdue_s: float) -> bool:
        return not self.member.running or overdue_s > _PATIENCE_S

    def end(self) -> None:
        self.member.start()


class _Resumed(Action):
    def begin(self) -> None:
        self.member.signal(signal.SIGUSR1)


class _Slow(Action):
    def begin(self) -> None:
        self.member.tell(slow_model_s=self.params["seconds"])

    def end(self) -> None:
        self.member.tell()


class _Storm(Action):
    """Visitors join and leave, one way or the other, without waiting for the group to settle."""

    def begin(self) -> None:
        self._dice = random.Random(self.params["seed"])
        self._next_s = 0.0
        self._here: list[Member] = []

    def tick(self, now_s: float) -> None:
        if now_s < self._next_s:
            return
        self._next_s = now_s + self.params["every_s"]
        if self._here and (len(self._here) > 1 or self._dice.random() < 0.4):
            self._leave(self._here.pop(0))
        else:
            visitor = self.stage.member(f"visitor-{len(self.stage.visitors)}")
            self.stage.visitors.append(visitor)
            self._here.append(visitor)
            visitor.start()

    def _leave(self, visitor: Member) -> None:
        if self._dice.random() < 0.5:
            visitor.kill()
        else:
            visitor.terminate()

    def end(self) -> None:
        while self._here:
            self._leave(self._here.pop())


class _ReplicaUnplugged(Action):
    def begin(self) -> None:
        self.member.unplug()

    def end(self) -> None:
        self.member.plug()


class _ClockStep(Action):
    def begin(self) -> None:
        self.member.step_clock(self.params["seconds"])

    def end(self) -> None:
        self.member.step_clock(0.0)


# --- brokers --------------------------------------------------------------------------------------------------------


class _Broker(Action):
    """`how`: kill, restart, pause."""

    how = "kill"

    def node(self) -> KafkaNode:
        """Which one."""
        number: int = self.params["broker"]
        return self.stage.brokers.nodes[number]

    def begin(self) -> None:
        self._node = self.node()
        if self.how == "kill":
            self._node.kill()
        elif self.how == "restart":
            self._node.terminate()
        else:
            self._node.pause()

    def may_end(self, overdue_s: float) -> bool:
        return self.how != "restart" or not self._node.running or overdue_s > _PATIENCE_S

    def end(self) -> None:
        if self.how == "pause":
            self._node.resume()
            return
        self._node.kill()  # a clean shutdown that never ends
        self._node.launch()


class _BrokerRestarted(_Broker):
    how = "restart"


class _BrokerPaused(_Broker):
    how = "pause"


class _ControllerKilled(_Broker):
    def node(self) -> KafkaNode:
        return self.stage.brokers.controller


class _CoordinatorMoved(_Broker):
    def node(self) -> KafkaNode:
        self.how = self.params["how"]
        group = self.stage.topics.group
        if self.params["of"] == "transaction":
            found = self.stage.brokers.coordinator(f"{group}-{self.member.name}", "__transaction_state")
        else:
            found = self.stage.brokers.coordinator(group)
        return self.stage.brokers.nodes[found or 1]


class _BrokerUnplugged(Action):
    """Packets vanish: no connection ends, and what was sent arrives when the kernel sends it again."""

    wires: tuple[Wire, ...] = WIRES

    def begin(self) -> None:
        self._seat = self.stage.brokers.seat(self.params["broker"])
        self._seat.unplug(*self.wires)

    def end(self) -> None:
        self._seat.plug()


class _BrokerCutOff(_BrokerUnplugged):
    """From the other brokers and the controller; clients still reach it, and it believes that it leads."""

    wires = ("peers",)


class _DiskFull(_Broker):
    """It ends when it finds that it can write no more, and is started again once there is room."""

    def begin(self) -> None:
        self._node = self.node()
        self._disk = self.stage.brokers.disk(self.params["broker"])
        self._disk.fill()

    def tick(self, now_s: float) -> None:
        self._disk.fill()  # what Kafka has deleted meanwhile

    def end(self) -> None:
        self._disk.clear()
        super().end()


# --- the network ----------------------------------------------------------------------------------------------------


class _Network(Action):
    def rule(self) -> Rule:
        """What the proxy is told."""
        raise NotImplementedError

    def rule_of(self, effect: Any, **more: Any) -> Rule:
        """For the broker or the replica that it is about; `only` the replica's producer, where that is said."""
        client = self.member.name if "replica" in self.params else None
        if "only" in self.params:
            client = f"{client}-{self.params['only']}"
        return Rule(effect, broker=self.params.get("broker"), client=client, **more)

    def begin(self) -> None:
        self._number = self.stage.brokers.proxy.add(self.rule())

    def end(self) -> None:
        self.stage.brokers.proxy.remove(self._number)


class _Delay(_Network):
    def rule(self) -> Rule:
        return self.rule_of("delay", value=self.params["seconds"])


class _Rate(_Network):
    def rule(self) -> Rule:
        return self.rule_of("rate", value=self.params["bytes_per_s"])


class _BlackHole(_Network):
    def rule(self) -> Rule:
        return self.rule_of("hold", direction=self.params["direction"], value=float(self.params["arrives_late"]))


class _Reset(_Network):
    def rule(self) -> Rule:
        return self.rule_of("reset")


class _Cut(_Network):
    def rule(self) -> Rule:
        return self.rule_of("cut", direction=self.params["direction"], value=self.params["after_bytes"])


class _Late(_Network):
    def rule(self) -> Rule:
        return self.rule_of("late", value=self.params["seconds"], api=APIS[self.params["api"]])


# --- topics, the store, messages ------------------------------------------------------------------------------------


class _MorePartitions(Action):
    def begin(self) -> None:
        self.stage.add_partitions(self.params["more"])


class _Store(Action):
    def begin(self) -> None:
        how = self.params.get("how", "slow" if "seconds" in self.params else "some")
        self.stage.store.tell(how, slow_s=self.params.get("seconds", 0.0), every=self.params.get("every", 2))

    def end(self) -> None:
        self.stage.store.tell("ok")


class _Poison(Action):
    def begin(self) -> None:
        self.stage.sender.poison(self.params["count"])


ACTIONS: Mapping[str, Callable[[Stage, Fault], Action]] = {
    "replica killed": _Killed,
    "replica killed at a point": _KilledAtPoint,
    "replica stopped (SIGSTOP) for a moment": _Frozen,
    "replica stopped past its session": _Frozen,
    "replica stopped past its transaction": _Frozen,
    "owner's thread stands still": _OwnerStill,
    "replica restarted (SIGTERM)": _Restarted,
    "rebalance storm": _Storm,
    "slow model": _Slow,
    "broker killed": _Broker,
    "broker restarted (SIGTERM)": _BrokerRestarted,
    "broker paused": _BrokerPaused,
    "controller killed": _ControllerKilled,
    "coordinator moved": _CoordinatorMoved,
    "network delay": _Delay,
    "network rate": _Rate,
    "black hole": _BlackHole,
    "connections reset": _Reset,
    "connections cut in a frame": _Cut,
    "late answers": _Late,
    "partitions added": _MorePartitions,
    "slow store": _Store,
    "store down": _Store,
    "store fails for some": _Store,
    "poison": _Poison,
    "resumed after the dead-letter limit (SIGUSR1)": _Resumed,
    "replica unplugged": _ReplicaUnplugged,
    "broker unplugged": _BrokerUnplugged,
    "broker cut off from its peers": _BrokerCutOff,
    "disk full": _DiskFull,
    "clock step": _ClockStep,
}
"""By the names of `plan.KINDS`."""


class Playing:
    """A schedule while it is played."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._waiting = sorted(enumerate(stage.plan.faults), key=lambda each: each[1].at_s)
        self._on: list[tuple[float, int, Action]] = []
        self._begun_s = time.monotonic()

    @property
    def over(self) -> bool:
        """Whether all have begun and ended."""
        return not self._waiting and not self._on

    def turn(self) -> None:
        """Begin and end what is due. Ends come first: a fault may be done to what another has just let go of."""
        at_s = time.monotonic() - self._begun_s
        for each in sorted(self._on, key=lambda each: each[0]):
            if each[0] <= at_s and each[2].may_end(at_s - each[0]):
                self._end(each)
        while self._waiting and self._waiting[0][1].at_s <= at_s:
            number, fault = self._waiting[0]
            if any(set(fault.claims) & set(action.fault.claims) for _, _, action in self._on):
                break  # what it is to be done to is not let go of yet
            self._waiting.pop(0)
            action = ACTIONS[fault.kind](self._stage, fault)
            self._note("begin", number, fault)
            action.begin()
            lasts_from_s = time.monotonic() - self._begun_s
            self._on.append((lasts_from_s + fault.for_s, number, action))
            if fault.for_s == 0:
                self._end(self._on[-1])
        for _, _, action in self._on:
            action.tick(time.monotonic())

    def heal(self) -> None:
        """End what is still on; what has not begun never does."""
        self._waiting.clear()
        for each in list(self._on):
            self._end(each)

    def _end(self, each: tuple[float, int, Action]) -> None:
        self._on.remove(each)
        _, number, action = each
        action.end()
        self._note("end", number, action.fault)

    def _note(self, phase: str, number: int, fault: Fault) -> None:
        self._stage.recorder.write("fault", phase=phase, number=number, name=fault.kind, params=fault.params)
