"""Wires the way from `model.source` to a folder on this disk: reference ──> registry ──> cache."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from consumer.bootstrap_clouds import s3_access, s3_endpoint
from consumer.errors import Fatal, ModelSourceUnreachable, ModelsUnavailable, SettingsError
from consumer.extras import missing
from consumer.model_reference import DEFAULT, ModelReference, parse_reference
from consumer.ports import BytesMoved, ModelRegistry, ModelVersion
from consumer.settings import Settings

if TYPE_CHECKING:
    from consumer.adapters.registries.model_cache import ModelCache, ModelFolder

_MIB = 1024 * 1024
_QUESTION_MS = 10_000
"""That a bucket may take for a question about models; W&B's server has `wandb.timeout_ms`."""

Progress = Callable[[float, str], None]


def reference_of(settings: Settings) -> ModelReference | None:
    """What `model.source` says; None for the default model. Raises SettingsError."""
    return None if settings.model.source == DEFAULT else parse_reference(settings.model.source)


def is_versioned(reference: ModelReference) -> bool:
    """Whether versions of a model lie there, and not the model itself."""
    if reference.scheme != "file" or reference.alias:
        return True
    from consumer.adapters.models.package import is_artifact
    from consumer.adapters.registries.layout import SAVED_MODEL, is_number

    folder = Path(reference.location)
    if is_artifact(folder) or (folder / SAVED_MODEL).exists() or not folder.is_dir():
        return False
    return any(is_number(path.name) for path in folder.iterdir())


def open_registry(settings: Settings, reference: ModelReference) -> ModelRegistry:
    """The registry of a model. Connects to nothing yet.

    Raises:
        SettingsError: its extra is not installed, or [stores.s3] makes no client.
    """
    transfer_s = settings.model.download_deadline_ms / 1000
    if reference.scheme == "file":
        from consumer.adapters.registries.file_registry import FileRegistry

        return FileRegistry(Path(reference.location))
    if reference.scheme == "s3":
        _need("s3", "obstore", "botocore")
        from consumer.adapters.registries.s3_registry import S3Registry
        from consumer.adapters.stores.clouds import S3Clients

        s3 = settings.stores.s3
        clients = S3Clients(
            endpoint=s3_endpoint(settings), region=s3.region, path_style=s3.path_style, access=s3_access(settings)
        )
        bucket, _, prefix = reference.location.partition("/")
        return S3Registry(
            clients.open,
            bucket,
            prefix,
            question_s=_QUESTION_MS / 1000,
            transfer_s=transfer_s,
            forget_credentials=clients.forget_credentials,
        )
    _need("wandb", "wandb")
    from consumer.adapters.registries.wandb_registry import WandbRegistry

    return WandbRegistry(
        reference.location,
        base_url=settings.wandb.base_url,
        api_key=settings.wandb.api_key.get_secret_value(),
        project=settings.tracking.project,
        question_s=settings.wandb.timeout_ms / 1000,
        transfer_s=transfer_s,
    )


def obtain_folder(
    settings: Settings,
    reference: ModelReference,
    cache_folder: Path,
    *,
    version: ModelVersion | None = None,
    moved: BytesMoved,
) -> "ModelFolder":
    """The folder of the model that a reference stands for, verified: where it lies on this disk, else in the cache.

    Args:
        settings: how registries are reached.
        reference: what is meant.
        cache_folder: below which models are kept.
        version: what the registry said before; then no other.
        moved: told the bytes that are fetched.

    Raises:
        ModelSourceUnreachable, ModelError, NotAuthorized: see `ModelCache.obtain`.
        ModelsUnavailable: the registry does not answer, and `version` was asked for.
    """
    if reference.scheme == "file":
        return _where_it_lies(reference, version)
    registry = open_registry(settings, reference)
    return model_cache(cache_folder, settings.model.cache_versions).obtain(
        str(reference.model),
        registry,
        alias=reference.alias,
        pin=reference.pin,
        version=version,
        progress=moved,
    )


def _where_it_lies(reference: ModelReference, version: ModelVersion | None) -> "ModelFolder":
    from consumer.adapters.registries.file_registry import FileRegistry
    from consumer.adapters.registries.layout import folder_digest, model_inside
    from consumer.adapters.registries.model_cache import ModelFolder

    if not is_versioned(reference):
        folder = model_inside(Path(reference.location))
        return ModelFolder(folder, "", folder_digest(folder, pin=reference.pin), from_cache=True)
    registry = FileRegistry(Path(reference.location))
    try:
        found = version or registry.resolve(reference.alias)
    except ModelsUnavailable as error:
        raise unreachable(error) from error
    folder = model_inside(registry.folder_of(found))
    return ModelFolder(folder, found.version, folder_digest(folder, pin=reference.pin), from_cache=True)


@cache
def model_cache(folder: Path, keep_versions: int) -> "ModelCache":
    """One for the process: it holds what is in use."""
    from consumer.adapters.registries.model_cache import ModelCache

    return ModelCache(folder / "models", keep_versions)


def unreachable(error: ModelsUnavailable) -> Fatal:
    """For those who need the registry itself."""
    return ModelSourceUnreachable(str(error), remedy="see that the registry can be reached, then try again")


def _need(extra: str, *modules: str) -> None:
    if absent := missing(*modules):
        raise SettingsError(
            f"the model comes from a registry, and {', '.join(absent)}, which it needs, is not installed",
            remedy=f"pip install '.[{extra}]'",
        )


def told_in_steps(progress: Progress) -> BytesMoved:
    """Bytes as a share and words; a line for each twentieth, not for each piece."""
    told = -1

    def moved(done: int, of: int | None) -> None:
        nonlocal told
        share = done / of if of else 0.0
        if (step := int(share * 20)) != told:
            told = step
            total = f" of {of / _MIB:.1f}" if of else ""
            progress(min(share, 1.0), f"fetching the model: {done / _MIB:.1f}{total} MiB")

    return moved
