"""Wires the model: from `model.source` to a runtime, labels and decoder that belong together.

source ──> a folder on this disk ──> a package, verified ──> a runtime ──> labels and decoder
settings    registry and cache         artifact or bare       auto: the fastest that agrees
"""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger

from consumer.bootstrap_registries import (
    is_versioned,
    model_cache,
    obtain_folder,
    open_registry,
    reference_of,
    told_in_steps,
)
from consumer.cpu import quota_cores
from consumer.errors import CannotRun, ModelError, ModelNotFound
from consumer.model_spec import ModelPackage
from consumer.ports import ImageDecoder, Labels, ModelRuntime, ModelVersion, SandboxedDecoder
from consumer.settings import ModelSettings, Settings
from consumer.settings_tables import DecodeSettings

if TYPE_CHECKING:
    from consumer.adapters.runtimes.choose import Choice

# What decoding may take at most: floating-point samples are stretched in six arrays of four bytes a pixel, the message
# is there as JSON, base64 and bytes, and libraries map themselves.
_DECODE_BYTES_A_PIXEL = 32
_DECODE_BODIES = 4
_DECODE_MORE_BYTES = 256 * 1024 * 1024

DESCRIBING = ("name", "version", "labels", "signature", "input_range", "mean", "std", "resize", "crop", "output")
"""Keys of [model] that say of a bare model what an artifact says itself."""

Progress = Callable[[float, str], None]
"""Told the share that is done, 0 to 1, and what comes next."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is loaded, and what goes with it."""

    runtime: ModelRuntime
    labels: Labels
    decoder: ImageDecoder
    sandbox: SandboxedDecoder
    """The same decoder in a child process, for suspects."""
    package: ModelPackage | None = None
    """None for the null runtime, which has no model."""


def cache_folder() -> Path:
    """Where models are kept: the user's cache (XDG Base Directory Specification)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ouzel"


def state_folder() -> Path:
    """Where a command notes how far it is: the user's state (XDG Base Directory Specification)."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "ouzel"


# --- from the source to a loaded model ------------------------------------------------------------------------------


def load_model(settings: Settings, *, progress: Progress = lambda _share, _what: None) -> Model:
    """Load the model that the settings name; not warm yet.

    Raises:
        ModelError: absent, unreadable, refused, or its runtime is not installed.
        DeviceMissing: a GPU was asked for and is not there.
        ModelSourceUnreachable: its registry does not answer, and the cache has nothing of it.
    """
    if settings.model.runtime == "null":
        return _null_model(settings)
    return load_package(settings, obtain_package(settings, progress=progress))


def obtain_package(
    settings: Settings,
    *,
    version: ModelVersion | None = None,
    progress: Progress = lambda _share, _what: None,
) -> ModelPackage:
    """The model that `model.source` stands for now: fetched where it is not here yet, and verified.

    Args:
        settings: whose `model.source` it is.
        version: what `resolve_source` said: this version then, and no other. None asks the registry, and where that
            does not answer takes what the alias stood for last from the cache.
        progress: told what is built or fetched.

    Raises: see `load_model`; ModelsUnavailable where `version` is given and the registry does not deliver it.
    """
    reference = reference_of(settings)
    if reference is None:
        return _default_package(settings, progress)
    if not is_versioned(reference):
        return open_folder(settings, Path(reference.location), pin=reference.pin)
    found = obtain_folder(settings, reference, cache_folder(), version=version, moved=told_in_steps(progress))
    return open_folder(settings, found.path, name=reference.name, version=found.version)


def release_package(settings: Settings, package: ModelPackage) -> None:
    """It is used no more: the cache may let it go."""
    model_cache(cache_folder(), settings.model.cache_versions).release(package.folder.name)


def resolve_source(settings: Settings) -> ModelVersion | None:
    """The version that `model.source` stands for now; one cheap question. None where it can stand for nothing else: the
    default model, a pinned one, a model that lies on this disk itself.

    Raises:
        ModelsUnavailable: the registry does not answer for now.
        ModelNotFound, NotAuthorized: see `ports.ModelRegistry`.
    """
    reference = reference_of(settings)
    if settings.model.runtime == "null" or reference is None or reference.pin or not is_versioned(reference):
        return None
    return open_registry(settings, reference).resolve(reference.alias)


def open_folder(settings: Settings, folder: Path, *, pin: str = "", name: str = "", version: str = "") -> ModelPackage:
    """A model on this disk, verified: an artifact, or a bare one that the settings describe.

    Args:
        settings: what they say of a bare model, and whether a provisional one will do.
        folder: the model's.
        pin: the digest that it must have; empty for any.
        name, version: of a bare model, where its registry gives it them.

    Raises:
        ModelError: it cannot be used; says why.
    """
    from consumer.adapters.models.package import is_artifact, open_artifact, open_bare, refuse_bare_file
    from consumer.adapters.registries.layout import folder_digest

    model = settings.model
    if is_artifact(folder):
        if set_besides := [f"model.{key}" for key in DESCRIBING if getattr(model, key) != _default(key)]:
            raise ModelError(
                f"{', '.join(set_besides)}: set, and {folder} is an artifact, which says this itself",
                remedy="leave them out; `ouzel model init` writes an artifact that says something else",
            )
        return open_artifact(
            folder, pin=pin, decode=_changed_decoding(settings), allow_provisional=model.allow_provisional
        )
    if not folder.exists():
        raise ModelNotFound(f"{folder}: no such model", remedy="correct the path: model.source, or what was named")
    refuse_bare_file(folder)
    if not model.labels:
        raise ModelError(
            f"model.labels is empty, and {folder}, a model without model.toml, has no names for its classes without it",
            remedy='set model.labels to its file: CSV "id,name" in any order, or one name a line',
        )
    if pin:
        folder_digest(folder, pin=pin)
    described = model.model_copy(update={"name": model.name or name, "version": model.version or version})
    return open_bare(folder, _bare(described), decode=_decode_settings(settings))


def open_to_look_at(
    settings: Settings, source: str, *, progress: Progress = lambda _share, _what: None
) -> ModelPackage:
    """The model that `source` stands for, in any form of `model.source`: to compare it or to make variants of it.

    An artifact on this disk is opened whatever its gate said, and whatever the settings say of a bare model. Raises:
    see `load_model`.
    """
    from consumer.adapters.models.package import is_artifact, read_artifact

    folder = Path(source.removeprefix("file://"))
    if is_artifact(folder):
        return read_artifact(folder, decode=_changed_decoding(settings))
    model = settings.model.model_copy(update={"source": source, "allow_provisional": True})
    return obtain_package(settings.model_copy(update={"model": model}), progress=progress)


def open_decoder(settings: Settings, package: ModelPackage) -> ImageDecoder:
    """What makes of encoded bytes the pixels that the model takes."""
    image = package.spec.input
    return _decoders(settings, image.size, image.resize, image.crop)[0]


def load_package(settings: Settings, package: ModelPackage, *, preferred: str = "") -> Model:
    """A model that is here: its runtime (see `choose_runtime`), labels and decoder. Raises ModelError and
    DeviceMissing."""
    from consumer.adapters.labels import load_labels, no_labels

    runtime = open_runtime(settings, package, preferred=preferred)
    labels = load_labels(package.labels, runtime.class_count) if package.labels is not None else no_labels()
    image = package.spec.input
    decoder, sandbox = _decoders(settings, image.size, image.resize, image.crop)
    return Model(runtime, labels, decoder, sandbox, package)


def choose_runtime(settings: Settings, package: ModelPackage, *, preferred: str = "") -> "Choice":
    """Which runtime `model.runtime` stands for with this model, and why. `auto` takes the `preferred` one where that is
    installed and runs the model's format; else it tries those installed, once: see `adapters/runtimes/choose.py`.
    Raises ModelError and its kinds."""
    from consumer.adapters.runtimes.choose import Choice
    from consumer.adapters.runtimes.choose import choose_runtime as fastest
    from consumer.adapters.runtimes.kinds import candidates, made_for

    model, only = settings.model, made_for(package.spec)
    if model.runtime == "auto":
        if preferred and preferred in {kind.name for kind in candidates(package)}:
            return Choice(preferred, "it runs the model that labels now")
        return fastest(
            package,
            threads=model.threads or quota_cores(),
            device=model.device,
            batch_size=settings.batch.max_size,
            cache=cache_folder(),
            streams=_demanded_streams(model),
        )
    if only not in {"", model.runtime}:
        raise CannotRun(
            f"{package.spec.name} was made for {only}, and model.runtime is {model.runtime!r}",
            remedy='set model.runtime = "auto"',
        )
    return Choice(model.runtime, "set by model.runtime")


def open_runtime(settings: Settings, package: ModelPackage, *, preferred: str = "") -> ModelRuntime:
    """The runtime that runs it here (see `choose_runtime`), loaded; says which and why. Raises ModelError and its
    kinds."""
    from consumer.adapters.runtimes.kinds import kind_of, open_kind

    model = settings.model
    choice = choose_runtime(settings, package, preferred=preferred)
    if model.runtime == "auto":
        logger.info("runtime {}: {}", choice.runtime, choice.why)
    kind = kind_of(choice.runtime)
    return open_kind(
        kind,
        package,
        threads=model.threads or quota_cores(),
        device=model.device,
        cache=cache_folder(),
        streams=model.streams if kind.has_streams else _demanded_streams(model),
    )


def _demanded_streams(model: ModelSettings) -> int:
    """Those that the user set: what tuning found for the model before this one keeps no runtime from running it."""
    return model.streams if "streams" in model.model_fields_set else 0


def _default(key: str) -> Any:
    return getattr(ModelSettings(), key)


def _bare(model: ModelSettings, weights: Mapping[str, str] | None = None) -> Any:
    from consumer.adapters.models.package import BareModel

    return BareModel(
        name=model.name,
        version=model.version,
        labels=Path(model.labels) if model.labels else None,
        signature=model.signature,
        input_range=model.input_range,
        mean=model.mean,
        std=model.std,
        resize=model.resize,
        crop=model.crop,
        output=model.output,
        weights=weights,
    )


def _decode_settings(settings: Settings) -> dict[str, object]:
    """Those that decide what the pixels become."""
    every = settings.decode.model_dump(exclude={"deadline_ms"})
    if settings.decode.resizer == DecodeSettings().resizer:
        del every["resizer"]  # digests from before there was a choice stay as they are
    return every


def _changed_decoding(settings: Settings) -> dict[str, object]:
    """Those that are not the default."""
    return {key: value for key, value in _decode_settings(settings).items() if value != getattr(DecodeSettings(), key)}


def _null_model(settings: Settings) -> Model:
    from consumer.adapters.labels import load_labels, no_labels
    from consumer.adapters.model_digest import file_sha256
    from consumer.adapters.runtimes.null_runtime import NullRuntime

    model = settings.model
    labels_file = Path(model.labels) if model.labels else None
    if labels_file is not None and not labels_file.is_file():
        raise ModelError(f"{labels_file}: no such label file", remedy="set model.labels to a label file")
    runtime = NullRuntime(
        name=model.name,
        version=model.version,
        labels_digest=file_sha256(labels_file) if labels_file is not None else "",
        preprocessing={"resize": model.resize, "crop": model.crop, **_decode_settings(settings)},
    )
    labels = load_labels(labels_file, runtime.class_count) if labels_file is not None else no_labels()
    return Model(runtime, labels, *_decoders(settings, runtime.input_size, model.resize, model.crop))


def _default_package(settings: Settings, progress: Progress) -> ModelPackage:
    """Its digest covers what it was made from: TensorFlow numbers what it saves by what the process did before, so the
    files differ from build to build while the model is the same."""
    from consumer.adapters.default_model import default_model
    from consumer.adapters.models.package import open_bare

    model = settings.model
    found = default_model(
        cache_folder(),
        brought=Path(sys.prefix) / "share" / "ouzel",
        threads=model.threads or quota_cores(),
        device=model.device,
        progress=progress,
    )
    described = model.model_copy(
        update={
            "labels": str(found.labels),
            "name": model.name or found.name,
            "version": model.version or found.version,
            "input_range": list(found.input_range),
            "mean": list(found.mean),
            "std": list(found.std),
            "resize": found.resize,
            "crop": found.crop,
        }
    )
    return open_bare(found.folder, _bare(described, found.weights), decode=_decode_settings(settings))


# --- decoders -------------------------------------------------------------------------------------------------------


def _decoders(
    settings: Settings, input_size: tuple[int, int], resize: str, crop: float
) -> tuple[ImageDecoder, SandboxedDecoder]:
    from consumer.adapters.image import PillowDecoder

    arguments: dict[str, Any] = {
        "input_size": input_size,
        "resize": resize,
        "crop": crop,
        "max_pixels": settings.input.max_pixels,
        "formats": settings.input.formats,
        **_decode_settings(settings),
    }
    return PillowDecoder(**arguments), sandboxed(settings, "consumer.adapters.image:PillowDecoder", arguments)


def sandboxed(settings: Settings, factory: str, arguments: Mapping[str, Any]) -> SandboxedDecoder:
    """The decoder that `factory` (`module:callable`) makes of these arguments, in a child process that starts with its
    first image."""
    from consumer.adapters import decode_sandbox

    return decode_sandbox.SandboxedDecoder(
        factory,
        arguments,
        input_size=arguments["input_size"],
        memory_bytes=settings.input.max_pixels * _DECODE_BYTES_A_PIXEL
        + settings.stores.max_image_bytes * _DECODE_BODIES
        + _DECODE_MORE_BYTES,
        deadline_s=settings.decode.deadline_ms / 1000,
    )
