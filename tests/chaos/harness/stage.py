"""What is there while a run goes on: the cluster, the replicas under supervision, the store, the sender."""

import contextlib
import itertools
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from tests.chaos.harness import plan as plans
from tests.chaos.harness.clock import WallClock
from tests.chaos.harness.cluster import Brokers
from tests.chaos.harness.entry import Told
from tests.chaos.harness.namespaces import Seat
from tests.chaos.harness.plan import Plan
from tests.chaos.harness.proxy import LOOPBACK
from tests.chaos.harness.sender import MAX_IMAGE_BYTES, Sender, Store
from tests.conftest import Topics
from tests.history import Recorder
from tests.kafka_clients import unique
from tests.replica import Replica

ENTRY = "tests.chaos.harness.entry"
_RESTART_AFTER_S = 0.5
_ASK_AGAIN_S = 1.0
_REQUEST_S = 10.0
_SHARE = {plans.LOCK_DURATION: "15000", plans.DELIVERY_COUNT_LIMIT: "5"}


class Member:
    """One replica under supervision: while it is `wanted` and not `stopped`, it is started again when it ends. `seat`
    is its place at the network and `clock` its wall clock, where the platform has them."""

    def __init__(
        self, name: str, replica: Replica, folder: Path, *, seat: Seat | None = None, clock: WallClock | None = None
    ) -> None:
        self.name = name
        self._replica = replica
        self._seat = seat
        self._clock = clock
        self._control = folder / f"{name}.control.json"
        replica.log_file = folder / f"{name}.log"
        self._numbers = itertools.count(1)
        self._told = Told()
        self.wanted = False
        self._started = False
        self._frozen = False
        self._ended_s: float | None = None
        self.exits: Counter[int] = Counter()
        """Exit codes of ends that nobody asked for."""

    @property
    def running(self) -> bool:
        """Whether its process is there (it may be stopped by SIGSTOP)."""
        return self._started and self._replica.exit_code is None

    @property
    def ready(self) -> bool:
        """Whether /readyz says so."""
        return self.running and not self._frozen and self._replica.probe("readyz")[0] == 200

    def start(self) -> None:
        """From the main thread. One that still runs, as a SIGTERM did not end it in time, is killed."""
        self.wanted = True
        if self.running:
            self._replica.kill9()
        self._replica.start()
        self._started, self._frozen, self._ended_s = True, False, None

    def tend(self, now_s: float) -> None:
        """What a supervisor does: start it again when it has ended by itself."""
        if not (self.wanted and self._started) or self._replica.exit_code is None:
            return
        if self._ended_s is None:
            self._ended_s = now_s
            self.exits[self._replica.exit_code] += 1
        elif now_s - self._ended_s > _RESTART_AFTER_S:
            self.start()

    def kill(self) -> None:
        """SIGKILL; it stays down until `start`."""
        self.wanted = False
        if self.running:
            self._replica.kill9()
        self._frozen = False

    def terminate(self) -> None:
        """SIGTERM; it stays down until `start`. Does not wait."""
        self.wanted = False
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)

    def freeze(self) -> None:
        """SIGSTOP."""
        self._frozen = self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._frozen = False
        self.signal(signal.SIGCONT)

    def signal(self, number: int) -> bool:
        """False where there is no process."""
        if not self.running:
            return False
        os.kill(self._replica.pid, number)
        return True

    def tell(self, **what: Any) -> None:
        """Its control file: nothing but this from now on. See `entry.Told`."""
        self._told = Told(number=next(self._numbers), **what)
        self._told.tell(self._control)

    def unplug(self) -> None:
        """Nothing that it sends arrives, and nothing comes, until `plug`."""
        assert self._seat is not None, "there are no network namespaces"
        self._seat.unplug()

    def plug(self) -> None:
        """Undoes `unplug`."""
        if self._seat is not None:
            self._seat.plug()

    def step_clock(self, ahead_s: float) -> None:
        """Its wall clock is so much ahead of the machine's from now on; behind where negative."""
        assert self._clock is not None, "it has no wall clock of its own"
        self._clock.step(ahead_s)

    def close(self) -> None:
        """End it."""
        self.wanted = False
        self._replica.close()
        if self._seat is not None:
            self._seat.close()


class Stage:
    """All that a fault can be done to. Used from the main thread, as processes must be started there."""

    def __init__(self, plan: Plan, brokers: Brokers, folder: Path) -> None:
        self.plan = plan
        self.brokers = brokers
        self.folder = folder
        self.partitions = plan.partitions
        self.members: list[Member] = []
        self.visitors: list[Member] = []
        self.recorder: Recorder
        self.store: Store
        self.sender: Sender
        name = unique("images")
        self.topics = Topics(
            name, name.replace("images", "predictions"), f"{name}.dlq", unique("group"), plan.partitions
        )
        self._errands: list[threading.Thread] = []

    def make_topics(self) -> None:
        """Topics and what the group is told at the broker."""
        names = (self.topics.images, self.topics.predictions, self.topics.dead_letters)
        self.brokers.create_topics(dict.fromkeys(names), partitions=self.plan.partitions, timeout_s=60)
        wanted: dict[str, str] = {}
        if self.plan.guarantee == "share":
            wanted = {
                "share.isolation.level": "read_committed",
                "share.auto.offset.reset": "earliest",
                "share.record.lock.duration.ms": self._share_setting(plans.LOCK_DURATION),
                "share.delivery.count.limit": self._share_setting(plans.DELIVERY_COUNT_LIMIT),
                "share.session.timeout.ms": "45000",
            }
        elif self.plan.protocol == "consumer":
            wanted = {"consumer.session.timeout.ms": str(int(plans.SESSION_S * 1000))}
        if wanted:
            entries = [
                ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in wanted.items()
            ]
            resource = ConfigResource(ResourceType.GROUP, self.topics.group, incremental_configs=entries)
            self.brokers.admin().incremental_alter_configs([resource])[resource].result(20)

    def _share_setting(self, name: str) -> str:
        return self.plan.settings.get(name, _SHARE[name])

    def member(self, name: str) -> Member:
        """A new replica, not started."""
        settings = self._settings(name)
        control = {"OUZEL_TEST_CONTROL": str(self.folder / f"{name}.control.json"), "OUZEL_TEST_BUG": self.plan.bug}
        clock = WallClock(self.folder / f"{name}.clock") if "clock" in self.plan.platform else None
        network = self.brokers.network
        seat = network.seat("clients") if network is not None else None
        replica = Replica(
            self.brokers.clients,
            self.topics,
            settings=settings | control | dict(clock.environment if clock else {}),
            entry=ENTRY,
            enter=seat.enter if seat else (),
            host=seat.addresses["clients"] if seat else LOOPBACK,
        )
        return Member(name, replica, self.folder, seat=seat, clock=clock)

    def _settings(self, name: str) -> dict[str, str]:
        settings = {
            "OUZEL_DELIVERY__GUARANTEE": self.plan.guarantee,
            "OUZEL_KAFKA__CLIENT__CLIENT_ID": name,
            "OUZEL_KAFKA__PRODUCER__CLIENT_ID": f"{name}-producer",
            "OUZEL_KAFKA__CONSUMER__CLIENT_ID": name,
            # librdkafka's own is five minutes: partitions that are added would not be seen in a run.
            "OUZEL_KAFKA__CONSUMER__TOPIC_METADATA_REFRESH_INTERVAL_MS": "1000",
            "OUZEL_COMMIT__INTERVAL_MS": "100",
            "OUZEL_DRAIN__TIMEOUT_MS": "4000",
            "OUZEL_PIPELINE__MAX_IN_FLIGHT_MESSAGES": "128",
            "OUZEL_PIPELINE__MAX_UNCOMMITTED_MESSAGES": "250",
            "OUZEL_STORES__HTTP__HOSTS": json.dumps([self.store.host]),
            "OUZEL_STORES__HTTP__SCHEMES": "http",
            "OUZEL_STORES__HTTP__ALLOW_NETWORKS": self.store.network,
            "OUZEL_STORES__MAX_IMAGE_BYTES": str(MAX_IMAGE_BYTES),
            "OUZEL_STORES__FETCH_DEADLINE_MS": "2000",
            "OUZEL_RETRY__MAX_ATTEMPTS": "3",
            "OUZEL_RETRY__INITIAL_BACKOFF_MS": "50",
            "OUZEL_RETRY__MAX_BACKOFF_MS": "500",
            # Poison is sent on purpose here: that the limit holds is tried elsewhere.
            "OUZEL_DEAD_LETTERS__MIN_SAMPLE": "1000000000",
            "OUZEL_DEAD_LETTERS__SYSTEM_CONSECUTIVE": "1000000000",
            "OUZEL_TRANSACTION__TIMEOUT_MS": str(int(plans.TRANSACTION_TIMEOUT_S * 1000)),
            "OUZEL_TRANSACTION__MAX_MS": "200",
            "OUZEL_TRANSACTION__ID": f"{self.topics.group}-{name}",
            **_SHARE,
        }
        if self.plan.guarantee != "share":
            settings["OUZEL_KAFKA__GROUP_PROTOCOL"] = self.plan.protocol
            settings["OUZEL_KAFKA__CONSUMER__MAX_POLL_INTERVAL_MS"] = str(int(plans.MAX_POLL_INTERVAL_S * 1000))
            if self.plan.protocol == "classic":
                settings["OUZEL_KAFKA__CONSUMER__SESSION_TIMEOUT_MS"] = str(int(plans.SESSION_S * 1000))
        return settings | dict(self.plan.settings)

    # --- while it goes on -------------------------------------------------------------------------------------------

    def tend(self) -> None:
        """Call it a few times a second."""
        now_s = time.monotonic()
        for member in (*self.members, *self.visitors):
            member.tend(now_s)

    def errand(self, what: Any, *, within_s: float) -> None:
        """Ask the cluster for something, in a thread of its own, until it does it: it may be away now."""

        def work() -> None:
            deadline_s = time.monotonic() + within_s
            while time.monotonic() < deadline_s:
                try:
                    what()
                    return
                except (KafkaException, TimeoutError):
                    time.sleep(_ASK_AGAIN_S)

        thread = threading.Thread(target=work, name="errand", daemon=True)
        self._errands.append(thread)
        thread.start()

    def wait_errands(self, timeout_s: float = 60) -> None:
        """Until all are run."""
        for thread in self._errands:
            thread.join(timeout_s)

    def add_partitions(self, more: int) -> None:
        """The input topic gains so many."""
        self.partitions += more
        total = self.partitions
        self.errand(lambda: self.brokers.add_partitions(self.topics.images, total, timeout_s=10), within_s=30)

    def exits(self) -> Mapping[int, int]:
        """Exit codes of replicas that ended by themselves."""
        return sum((member.exits for member in (*self.members, *self.visitors)), Counter[int]())

    def close(self) -> None:
        """End the replicas."""
        for member in (*self.members, *self.visitors):
            member.close()
        self.wait_errands()

    def delete_topics(self) -> None:
        """The next run has its own."""
        names = [self.topics.images, self.topics.predictions, self.topics.dead_letters]
        for answer in self.brokers.admin().delete_topics(names).values():
            with contextlib.suppress(KafkaException, TimeoutError):
                answer.result(_REQUEST_S)
