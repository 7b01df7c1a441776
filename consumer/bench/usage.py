"""What processes use, as the kernel counts it (psutil, extra `bench`)."""

import time
from dataclasses import dataclass
from typing import Any

from consumer.cpu import quota_cores
from consumer.errors import CommandRefused, SettingsError
from consumer.extras import missing


def check_extra() -> None:
    """Raises SettingsError where psutil is not installed."""
    if missing("psutil"):
        raise SettingsError("psutil is not installed", remedy="pip install '.[bench]'")


@dataclass(frozen=True, slots=True)
class Sample:
    """CPU-seconds so far, at one moment."""

    at_s: float
    service_s: float
    bench_s: float
    broker_s: float | None
    busy_s: float | None
    """Of the whole machine; None where its processors are not the cores that are ours."""
    idle_s: float | None


class Usage:
    """Asks for the CPU of service, broker, this process and the machine; and the service's largest resident size."""

    def __init__(self, service_pid: int, broker_pid: int | None) -> None:
        """Raises CommandRefused where there is no such broker process."""
        import psutil

        self._service = psutil.Process(service_pid)
        self._broker = broker_process(broker_pid) if broker_pid is not None else None
        self._whole_machine = psutil.cpu_count() == quota_cores()
        self.peak_rss_bytes = 0

    def sample(self) -> Sample:
        """Now. Notes the service's resident size, too."""
        with self._service.oneshot():
            service = self._service.cpu_times()
            self.peak_rss_bytes = max(self.peak_rss_bytes, int(self._service.memory_info().rss))
        broker = self._broker.cpu_times() if self._broker is not None else None
        busy_s, idle_s = machine_s() if self._whole_machine else (None, None)
        return Sample(
            time.monotonic(),
            float(service.user + service.system),
            time.process_time(),
            None if broker is None else float(broker.user + broker.system),
            busy_s,
            idle_s,
        )


def machine_s() -> tuple[float, float]:
    """CPU-seconds of all processors so far: busy, and idle."""
    import psutil

    times = psutil.cpu_times()
    idle_s = float(times.idle + getattr(times, "iowait", 0.0))
    # A guest's time is in `user` already.
    guests_s = float(getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0))
    return float(sum(times)) - idle_s - guests_s, idle_s


def broker_process(pid: int) -> Any:
    """The broker's process. Raises CommandRefused where there is none."""
    import psutil

    try:
        return psutil.Process(pid)
    except psutil.Error as error:
        raise CommandRefused(f"--broker-pid {pid}: {error}", remedy="give the process id of the broker here") from None


def others_s(first: Sample, last: Sample, cores: int) -> float | None:
    """CPU-seconds of everything but service, broker and this process; None where the machine's own count does not add
    up to its cores (some sandboxes count nothing)."""
    if first.busy_s is None or last.busy_s is None or first.idle_s is None or last.idle_s is None:
        return None
    wall_s = last.at_s - first.at_s
    busy_s, idle_s = last.busy_s - first.busy_s, last.idle_s - first.idle_s
    if not 0.9 < (busy_s + idle_s) / (cores * wall_s) < 1.1:
        return None
    ours_s = last.service_s - first.service_s + last.bench_s - first.bench_s
    if last.broker_s is not None and first.broker_s is not None:
        ours_s += last.broker_s - first.broker_s
    return max(0.0, busy_s - ours_s)
