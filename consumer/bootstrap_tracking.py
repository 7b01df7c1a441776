"""Wires the run's notebook: what is told of a replica as its run begins, and where the run goes."""

import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consumer import __version__
from consumer.adapters.cpu_flags import cpu_flags, cpu_name, noted
from consumer.bootstrap_model import state_folder
from consumer.cpu import quota_cores
from consumer.errors import SettingsError
from consumer.extras import missing
from consumer.kafka_properties import is_secret
from consumer.log import redacted
from consumer.metrics import Metrics
from consumer.redact import MASK
from consumer.settings import Provenance, Settings, keys_of, value_of
from consumer.settings_page import from_secret_file
from consumer.tracking import Notebook

if TYPE_CHECKING:
    from consumer.adapters.tracking.wandb_tracker import RunFacts

_PACKAGES = (
    *("numpy", "pillow", "confluent-kafka", "tensorflow", "tensorflow-cpu"),
    *("openvino", "onnxruntime", "onnxruntime-gpu", "ai-edge-litert", "wandb"),
)


def check_tracking(settings: Settings) -> None:
    """Raises SettingsError where tracking is enabled, and what it needs is not installed."""
    if settings.tracking.enabled and missing("wandb"):
        raise SettingsError("tracking.enabled is set, and wandb is not installed", remedy="pip install '.[wandb]'")


@contextmanager
def open_notebook(settings: Settings, metrics: Metrics, sources: Provenance) -> Iterator[Notebook | None]:
    """The notebook of this replica's run, closed at the end within `tracking.finish_timeout_ms`; None where tracking
    is off. Waits for nothing as it begins."""
    tracking = settings.tracking
    if not tracking.enabled:
        yield None
        return
    from consumer.adapters.tracking.wandb_tracker import WandbTracker

    notebook = Notebook(
        WandbTracker(run_facts(settings, sources), dropped=metrics.tracking_dropped),
        metrics,
        interval_s=tracking.interval_ms / 1000,
        images_per_interval=tracking.images_per_interval,
        image_max_bytes=tracking.image_max_bytes,
    )
    notebook.start()
    try:
        yield notebook
    finally:
        notebook.close(tracking.finish_timeout_ms / 1000)


def run_facts(settings: Settings, sources: Provenance) -> "RunFacts":
    """What the run is called, where it goes, and what is said of the replica in it."""
    from consumer.adapters.tracking.wandb_tracker import RunFacts

    tracking, wandb = settings.tracking, settings.wandb
    return RunFacts(
        project=tracking.project,
        entity=tracking.entity,
        group=settings.kafka.group_id,
        name=socket.gethostname(),
        mode=tracking.mode,
        folder=runs_folder(settings),
        config={
            "versions": {"ouzel": __version__, "python": sys.version.split()[0], **_versions()},
            "cpu": {"name": cpu_name(), "cores": quota_cores(), "flags": " ".join(noted(cpu_flags()))},
            "settings": told_settings(settings, sources),
        },
        base_url=wandb.base_url,
        api_key=wandb.api_key.get_secret_value(),
        timeout_s=wandb.timeout_ms / 1000,
        interval_s=tracking.interval_ms / 1000,
        finish_s=tracking.finish_timeout_ms / 1000,
    )


def runs_folder(settings: Settings) -> Path:
    """Runs are written below it."""
    folder = settings.tracking.folder
    return Path(folder).absolute() if folder else state_folder() / "tracking"


def told_settings(settings: Settings, sources: Provenance) -> dict[str, object]:
    """Every setting by its dotted key, secrets masked as `ouzel settings` masks them."""
    return {
        key: MASK if is_secret(key) or from_secret_file(sources.get(key, "")) else _told(value_of(settings, key))
        for key in keys_of(settings)
    }


def _told(value: Any) -> Any:
    if hasattr(value, "get_secret_value"):
        return MASK if value.get_secret_value() else ""
    if isinstance(value, Mapping):
        return {str(name): MASK if is_secret(str(name)) else _told(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_told(each) for each in value]
    return redacted(value) if isinstance(value, str) else value


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
