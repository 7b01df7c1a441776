"""A replica's life: logs, probes, broker, model, group, and the end. The order is the point."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NoReturn

from loguru import logger

from consumer import __version__, bootstrap, bootstrap_tracking, bootstrap_tuning
from consumer.adapters.health_server import HealthServer
from consumer.clock import SystemClock
from consumer.errors import Fatal, RangeUnfinished
from consumer.health import Health
from consumer.log import configure
from consumer.metrics import Metrics
from consumer.settings import Provenance, Settings
from consumer.stages.relabel import Progress, fix_range, progress_of
from consumer.stages.start import Range

Wrap = Callable[[bootstrap.Ports], bootstrap.Ports]


def run_service(
    settings: Settings,
    *,
    resume: bool = False,
    read_settings: Callable[[], Settings] | None = None,
    relabel: Range | None = None,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
    wrap: Wrap = lambda ports: ports,
    sources: Provenance | None = None,
) -> None:
    """Run one replica until it is told to stop, or until `relabel` is done by all replicas of the group.

    With `read_settings`, which gives the settings as they are then, new versions of the model go live meanwhile; a
    range is labelled by one model. `wrap` is for tests: it may put something between the service and its ports.
    `sources` says where each setting came from: one from a secret file is told nobody.

    Raises:
        Fatal: see `errors`.
    """
    configure(settings.log)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, partial(_leave_early, code=0 if relabel is None else RangeUnfinished.exit_code))
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # there is nothing to go on with yet
    asked_early: list[int] = []
    signal.signal(signal.SIGHUP, lambda number, _frame: asked_early.append(number))
    logger.info("ouzel {}", __version__)
    metrics = Metrics()
    health = Health(
        SystemClock(),
        loop_deadline_s=settings.health.loop_deadline_ms / 1000,
        stage_deadline_s=settings.health.stage_deadline_ms / 1000,
    )
    bootstrap_tracking.check_tracking(settings)
    with _probes(settings, health, metrics):
        view = bootstrap.open_view(settings)
        bootstrap.check_topics(settings, view)  # a wrong name is told before the model is loaded
        bootstrap.check_share_group(settings)
        parts = None
        if relabel is not None:
            kafka = settings.kafka
            parts = fix_range(view, kafka.input_topics, relabel, group_id=kafka.group_id)
            progress = progress_of(parts, view.committed(list(parts)))
            on_progress(progress)
            if progress.finished:
                logger.info("nothing is left of this range")
                return
        encoder = bootstrap.build_encoder(settings)
        loaded = bootstrap_tuning.load_model(settings, progress=_say_progress)
        settings, model = loaded.settings, loaded.model
        read_again = None if read_settings is None else lambda: loaded.read(read_settings())
        ports = wrap(bootstrap.open_ports(settings, model, view, encoder, tell_ends=relabel is not None))
        with bootstrap_tracking.open_notebook(settings, metrics, sources or {}) as notebook:
            service = bootstrap.Service(
                settings,
                ports,
                metrics=metrics,
                health=health,
                resume=resume,
                read_settings=read_again if relabel is None else None,
                parts=parts,
                on_progress=on_progress,
                notebook=notebook,
            )
            signal.signal(signal.SIGHUP, lambda _number, _frame: service.look_for_new_model())
            if asked_early:
                service.look_for_new_model()
            service.run()
    logger.info("stopped")
    if relabel is not None and not service.pipeline.finished:
        raise RangeUnfinished(
            "stopped before the range was done; what is done is committed",
            remedy="the same command goes on where this one stopped",
        )


def _leave_early(number: int, _frame: object, *, code: int) -> None:
    """While the model loads nothing was taken and nothing is owed. Also what makes PID 1 of a container stop."""
    logger.info("stopped by {} before the model was ready", signal.Signals(number).name)
    os._exit(code)


def end_service(error: Fatal | None = None) -> NoReturn:
    """The last line of the log, and the exit code.

    Ends the process at once: a thread that hangs in a store, a decoder or the model would keep the interpreter from
    ending, long after the drain's deadline. All that is owed was done before.
    """
    if error is not None:
        about = logger.bind(error_class=type(error).__name__, remedy=error.remedy, exit_code=error.exit_code)
        about.error("{}", error)
    logger.complete()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(error.exit_code if error is not None else 0)


@contextmanager
def _probes(settings: Settings, health: Health, metrics: Metrics) -> Iterator[None]:
    """Probes answer from the start: alive, and not ready while the model loads."""
    if not settings.health.enabled:
        yield
        return
    server = HealthServer(
        settings.health.host, settings.health.port, live=health.live, ready=health.ready, registry=metrics.registry
    )
    logger.bind(address=server.address).info("health and metrics at http://{}", server.address)
    try:
        yield
    finally:
        server.close()


def _say_progress(share: float, what: str) -> None:
    """In a log, a line a step says more than a bar."""
    logger.info("model: {} ({:.0%})", what, share)
    sys.stderr.flush()
