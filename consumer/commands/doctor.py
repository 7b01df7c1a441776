"""`ouzel doctor`: is everything there that `ouzel run` needs? One line each, and what to do where it fails."""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

if TYPE_CHECKING:
    from consumer.adapters.kafka_admin import KafkaAdmin
    from consumer.bootstrap_model import Model
    from consumer.messages import ModelInfo
    from consumer.ports import SandboxedDecoder
    from consumer.rights import Right
    from consumer.settings import Settings

Result = Literal["pass", "warn", "fail", "skip"]

_MARKS: dict[Result, tuple[str, str]] = {
    "pass": ("ok  ", "green"),
    "warn": ("warn", "yellow"),
    "fail": ("FAIL", "red"),
    "skip": ("skip", "bright_black"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's."""

    check: str
    result: Result
    said: str
    fix: str = ""


def doctor(ctx: typer.Context) -> None:
    """Check settings, broker, topics, rights, schema registry, stores, CPU, model, labels, sandbox, one inference,
    tracking, clock and disk; change nothing.

    One line each, with what to do where it fails; JSON lines when piped. Exit code 1 if anything fails. Topics are
    compared as the user of kafka.admin, rights asked as the service's own, that of kafka.client.
    """
    from loguru import logger

    from consumer.console import print_json, stdout_is_terminal

    logger.remove()  # what the parts say as they start is for the service's log
    failed = False
    for finding in _findings(ctx):
        failed = failed or finding.result == "fail"
        if not stdout_is_terminal():
            print_json(asdict(finding))
            continue
        mark, colour = _MARKS[finding.result]
        typer.echo(f"{typer.style(mark, fg=colour)}  {finding.check:<10} {finding.said}")
        if finding.fix:
            typer.echo(f"      fix: {finding.fix}")
    if failed:
        raise typer.Exit(1)


def _findings(ctx: typer.Context) -> Iterator[Finding]:
    from consumer.console import settings_and_sources_from
    from consumer.errors import SettingsError
    from consumer.settings import default_of, value_of

    try:
        settings, sources = settings_and_sources_from(ctx)
        changed = sum(value_of(settings, key) != default_of(key) for key in sources)
    except SettingsError as error:
        yield Finding("settings", "fail", str(error), error.remedy)
        yield Finding("the rest", "skip", "needs settings that hold")
        return
    yield Finding("settings", "pass", f"{changed} of {len(sources)} are not the default: ouzel settings --changed")
    yield from _kafka(settings)
    yield from _guarded("registry", lambda: _registry(settings))
    yield from _stores(settings)
    yield from _guarded("model", lambda: _model(settings))
    yield from _guarded("tracking", lambda: _tracking(settings))
    yield _clock()
    yield from _disk(settings)


def _guarded(check: str, steps: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of `steps`, an error of ours being one of them."""
    from consumer.errors import Fatal, OuzelError

    try:
        yield from steps()
    except OuzelError as error:
        yield Finding(check, "fail", str(error), error.remedy if isinstance(error, Fatal) else "")


# --- Kafka ----------------------------------------------------------------------------------------------------------


def _kafka(settings: "Settings") -> Iterator[Finding]:
    from consumer.commands.topics import open_admin
    from consumer.errors import Fatal

    try:
        check_client_properties(settings)
    except Fatal as error:
        yield Finding("properties", "fail", str(error), error.remedy)
        yield Finding("broker", "skip", "needs properties that librdkafka takes")
        return
    yield Finding("properties", "pass", "librdkafka takes them all")
    admin = open_admin(settings)
    try:
        cluster = admin.cluster()
    except Fatal as error:
        yield Finding("broker", "fail", str(error), error.remedy)
        yield Finding("topics", "skip", "needs a broker")
        return
    yield Finding("broker", "pass", f"cluster {cluster.cluster_id} at {', '.join(cluster.brokers)}")
    yield from _guarded("topics", lambda: _topics(settings, admin))
    if settings.delivery.guarantee == "share":
        yield from _guarded("share group", lambda: _share_group(settings))
    yield from _guarded("rights", lambda: _rights(settings, _as_the_service(settings)))


def _as_the_service(settings: "Settings") -> "KafkaAdmin":
    """The admin protocol, spoken as the service's own user."""
    from consumer.commands.topics import open_admin

    kafka = settings.kafka.model_copy(update={"admin": {}})
    return open_admin(settings.model_copy(update={"kafka": kafka}))


def check_client_properties(settings: "Settings") -> None:
    """Whether librdkafka takes every property, without a network. Raises `SettingsError` with all that it refuses."""
    from consumer.adapters.librdkafka import check_properties
    from consumer.kafka_properties import (
        client_properties,
        consumer_properties,
        places,
        producer_properties,
        share_properties,
    )

    if settings.delivery.guarantee == "share":
        reader = {"share": share_properties(settings.kafka, "doctor", max_poll_records=1)}
    else:
        reader = {"consumer": consumer_properties(settings.kafka, "doctor")}
    clients = {
        **reader,
        "producer": producer_properties(settings.kafka),
        "admin": client_properties(settings.kafka, "admin"),
    }
    check_properties(clients, places(settings.kafka))


def _topics(settings: "Settings", admin: "KafkaAdmin") -> Iterator[Finding]:
    from consumer.commands.topics import differences, plans_for
    from consumer.errors import NotAuthorized
    from consumer.names import replay_marker_topic

    plans = plans_for(settings, admin)
    optional = replay_marker_topic(settings.kafka.dead_letter_topic)
    there = admin.topics([plan.name for plan in plans if plan.name != optional])
    try:
        there = {**there, **admin.topics([optional])}
    except NotAuthorized:  # the service has no rights on it, and needs none
        plans = [plan for plan in plans if plan.name != optional]
        yield Finding("topics", "pass", f"{optional}: not ours to see; only `ouzel dlq replay` needs it")
    for plan in plans:
        facts = there[plan.name]
        if facts is None:
            # Only `ouzel dlq replay` needs the markers.
            result: Result = "warn" if plan.name == optional else "fail"
            yield Finding("topics", result, f"{plan.name} does not exist", "ouzel topics create")
        elif different := differences(plan, facts):
            said = ", ".join(f"{name} is {now}, wanted {wanted}" for name, (now, wanted, _) in different.items())
            yield Finding("topics", "warn", f"{plan.name}: {said}", "ouzel topics describe")
        else:
            yield Finding("topics", "pass", f"{plan.name}: {facts.partitions} partitions")


def _share_group(settings: "Settings") -> Iterator[Finding]:
    from consumer.bootstrap import check_share_group

    check_share_group(settings)
    yield Finding("share group", "pass", f"{settings.kafka.group_id} is set as the settings want it")


def _rights(settings: "Settings", admin: "KafkaAdmin") -> Iterator[Finding]:
    from consumer.rights import rights_of

    for right in rights_of(settings):
        allowed = _allowed(admin, right)
        if allowed != _ABSENT:
            yield _right(settings, right, allowed)


_ABSENT = frozenset({"(there is no such topic)"})


def _allowed(admin: "KafkaAdmin", right: "Right") -> frozenset[str] | None:
    from consumer.errors import NotAuthorized

    try:
        if right.resource == "group":
            return admin.group_allowed(right.name)
        if right.resource == "transactional-id":
            return None
        facts = admin.topics([right.name])[right.name]
    except NotAuthorized as error:
        if not error.denied:
            raise
        return frozenset()  # not even Describe
    return _ABSENT if facts is None else facts.allowed


def _right(settings: "Settings", right: "Right", allowed: frozenset[str] | None) -> Finding:
    from consumer.rights import remedy

    what = f"{right.resource} {right.name}"
    if allowed is None:
        return Finding("rights", "warn", f"{what}: the broker does not say what we may do; it shows at start")
    operation = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", right.operation).upper()  # DescribeConfigs: DESCRIBE_CONFIGS
    if operation in allowed or "ALL" in allowed:
        return Finding("rights", "pass", f"{what}: {right.operation} is allowed")
    return Finding("rights", "fail", f"{what}: {right.operation} is not allowed", remedy(settings.kafka, [right]))


def _registry(settings: "Settings") -> Iterator[Finding]:
    """Asks it what the service will ask."""
    if not settings.schema_registry.url:
        return
    from consumer.adapters.schema_registry.client import asked
    from consumer.adapters.schema_registry.encoders import value_subject
    from consumer.bootstrap import build_encoder, open_registry

    written_as = settings.output.format
    if written_as == "json":
        with open_registry(settings) as client:
            asked(client.get_versions, value_subject(settings.kafka.input_topics[0]))
        yield Finding("registry", "pass", "answers")
    else:
        build_encoder(settings)
        yield Finding("registry", "pass", f"has the schema of label events as {written_as}")


# --- stores ---------------------------------------------------------------------------------------------------------


def _stores(settings: "Settings") -> Iterator[Finding]:
    for root in settings.stores.file.roots:
        if not Path(root).is_dir():
            fix = "mount it, or correct stores.file.roots"
            yield Finding("stores", "fail", f"file root {root} is not there, or is no folder", fix)
        elif not os.access(root, os.R_OK | os.X_OK):
            yield Finding("stores", "fail", f"file root {root} may not be read", f"let this user read {root}")
        else:
            yield Finding("stores", "pass", f"file root {root}")
    if hosts := settings.stores.http.hosts:
        yield Finding("stores", "skip", f"{', '.join(hosts)}: which image to ask for is not known")
    yield from _guarded("stores", lambda: _buckets(settings))


_PROBE_KEY = "ouzel-doctor-looks-for-what-is-not-there"


def _buckets(settings: "Settings") -> Iterator[Finding]:
    """Asks each bucket that the settings name for an object that it does not have: "not found" is a right answer."""
    from consumer.bootstrap import build_stores
    from consumer.errors import ImageNotFound, StoreUnavailable

    stores = {scheme: store for store in build_stores(settings) for scheme in store.schemes}
    chosen = settings.stores
    named = {"s3": chosen.s3.buckets, "gs": chosen.gcs.buckets, "az": chosen.azure.containers}
    for scheme, entry in ((scheme, entry) for scheme, entries in named.items() for entry in entries):
        uri = f"{scheme}://{entry.rstrip('/')}/{_PROBE_KEY}"
        if "*" in entry:
            yield Finding("stores", "skip", f"{scheme}://{entry}: which buckets these are is not known")
            continue
        try:
            stores[scheme].fetch(uri, max_bytes=1, deadline_s=chosen.fetch_deadline_ms / 1000)
        except ImageNotFound:
            yield Finding("stores", "pass", f"{scheme}://{entry}: answers")
        except StoreUnavailable as error:
            # Without the right to list, S3 answers 403 for what is not there, and nothing may be wrong.
            result: Result = "warn" if "AccessDenied" in str(error) else "fail"
            yield Finding("stores", result, str(error).replace(_PROBE_KEY, "..."), "see docs/stores.md")


# --- model ----------------------------------------------------------------------------------------------------------


_PHOTOGRAPH = Path(__file__).resolve().parent.parent / "data" / "photographs" / "chelsea.jpg"


def _model(settings: "Settings") -> Iterator[Finding]:
    import numpy as np

    yield _cpu()
    began_s = time.monotonic()
    model, why = _load(settings)
    runtime, labels = model.runtime, model.labels
    if why:
        yield Finding("runtime", "pass", f"{runtime.info.runtime}: {why}")
    try:
        info = runtime.info
        took_s = time.monotonic() - began_s
        named = f"{info.name} {info.version} ({info.runtime}, {info.precision}), {info.digest}"
        yield Finding("model", "pass", f"{named}, loaded in {took_s:.1f} s")
        if settings.model.autotune:
            yield _tuning(settings, info)
        if len(labels) < runtime.class_count:
            said = f"{len(labels)} names for {runtime.class_count} classes; the others are shown by their number"
            yield Finding("labels", "warn", said, "set model.labels to the file that belongs to the model")
        else:
            yield Finding("labels", "pass", f"{len(labels)} names for {runtime.class_count} classes")

        yield from _guarded("sandbox", lambda: _sandbox(model.sandbox))
        pixels = model.decoder.decode(_PHOTOGRAPH.read_bytes()).pixels
        runtime.warm_up([1])
        began_s = time.monotonic()
        scores = runtime.infer(pixels[np.newaxis])[0]
        took_ms = (time.monotonic() - began_s) * 1000
        if not np.isfinite(scores).all() or not 0.98 <= float(scores.sum()) <= 1.02:
            said = f"the scores of one image add up to {float(scores.sum()):.3f}, not 1"
            yield Finding(
                "inference", "fail", said, 'set model.output to "logits" or "probabilities" as the model has it'
            )
            return
        best = int(scores.argmax())
        said = f"{_PHOTOGRAPH.name} in {took_ms:.1f} ms: {labels.name(best)}, {float(scores[best]):.2f}"
        yield Finding("inference", "pass", said)
    finally:
        runtime.close()


def _tuning(settings: "Settings", info: "ModelInfo") -> Finding:
    from consumer.bootstrap_tuning import remembered
    from consumer.tuning_settings import held

    found = remembered(settings, info.digest, info.runtime)
    left = held(settings)
    kept = f"; left as set: {', '.join(left)}" if left else ""
    if found is None:
        budget_s = settings.model.autotune_budget_ms / 1000
        return Finding("tuning", "pass", f"the next `ouzel run` measures for up to {budget_s:g} s{kept}")
    values = ", ".join(f"{name} {value}" for name, value in found.values.items())
    return Finding("tuning", "pass", f"remembered: {values}: {found.why}{kept}")


def _load(settings: "Settings") -> "tuple[Model, str]":
    """The model, and why `auto` takes the runtime that it does. The first time it tries each that is installed, which
    takes some seconds."""
    from consumer.bootstrap_model import choose_runtime, load_model, load_package, obtain_package

    if settings.model.runtime != "auto":
        return load_model(settings), ""
    package = obtain_package(settings)
    choice = choose_runtime(settings, package)
    model = settings.model.model_copy(update={"runtime": choice.runtime})
    return load_package(settings.model_copy(update={"model": model}), package), choice.why


def _cpu() -> Finding:
    from consumer.adapters.cpu_flags import cpu_flags, cpu_name, noted, precisions

    flags = cpu_flags()
    if not flags:
        return Finding("cpu", "skip", "what it can do cannot be told here")
    return Finding(
        "cpu", "pass", f"{cpu_name()}: {', '.join(noted(flags)) or 'no flag that matters'}; {precisions(flags)}"
    )


def _sandbox(sandbox: "SandboxedDecoder") -> Iterator[Finding]:
    """Needed after a crash only, when it is too late to find out that it cannot be had."""
    try:
        sandbox.measure(_PHOTOGRAPH.read_bytes())
    finally:
        sandbox.close()
    yield Finding("sandbox", "pass", "a child process would decode what may have ended a replica")


# --- machine --------------------------------------------------------------------------------------------------------

_STA_UNSYNC = 0x40  # linux/timex.h
_TIMEX_STATUS_OFFSET = 40  # of `int status` in struct timex on 64-bit Linux


def _clock() -> Finding:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if time.gmtime().tm_year < 2025:
        return Finding("clock", "fail", f"it is not {now}", "set the clock: time stamps and TLS depend on it")
    synchronised = _clock_is_synchronised()
    if synchronised is None:
        return Finding("clock", "pass", f"{now}; whether it is synchronised cannot be told here")
    if not synchronised:
        fix = (
            "run chrony or systemd-timesyncd on the host: published_at and waits by time stamp are as good as the clock"
        )
        return Finding("clock", "warn", f"{now}; not synchronised", fix)
    return Finding("clock", "pass", f"{now}, synchronised")


def _clock_is_synchronised() -> bool | None:
    import ctypes
    import struct

    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return None
    buffer = ctypes.create_string_buffer(256)  # modes = 0: only asks
    if adjtimex(buffer) < 0:
        return None
    (status,) = struct.unpack_from("i", buffer.raw, _TIMEX_STATUS_OFFSET)
    return not status & _STA_UNSYNC


def _tracking(settings: "Settings") -> Iterator[Finding]:
    """Asks the server, in a child process as the service does, whether it knows us."""
    tracking = settings.tracking
    if not tracking.enabled:
        return
    from consumer.bootstrap_tracking import check_tracking, run_facts

    check_tracking(settings)
    from consumer.adapters.tracking.wandb_tracker import probe
    from consumer.log import redacted

    facts = run_facts(settings, {})
    if tracking.mode == "offline":
        yield Finding("tracking", "pass", f"runs are written to {facts.folder}")
    elif (wrong := probe(facts)) is None:
        yield Finding("tracking", "pass", f"the server takes runs of the project {tracking.project}")
    else:
        fix = 'set wandb.base_url and wandb.api_key, or tracking.mode = "offline"'
        # Labels do not need it: the run is then written to disk alone.
        yield Finding("tracking", "warn", f"the server does not know us: {redacted(wrong)}", fix)


_LOW_BYTES = 1024**3
_TOO_LOW_BYTES = 100 * 1024**2


def _disk(settings: "Settings") -> Iterator[Finding]:
    from consumer.bootstrap_model import cache_folder

    folders = {"models": cache_folder()}
    if settings.tracking.enabled:
        from consumer.bootstrap_tracking import runs_folder

        folders["runs"] = runs_folder(settings)
    if settings.log.file:
        folders["log file"] = Path(settings.log.file).resolve().parent
    for purpose, folder in folders.items():
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free
        said = f"{free / 1024**3:.1f} GiB free for the {purpose} ({there})"
        if free < _LOW_BYTES:
            yield Finding("disk", "fail" if free < _TOO_LOW_BYTES else "warn", said, f"make room in {there}")
        else:
            yield Finding("disk", "pass", said)
