"""Wires the model that labels, and what may take its place: from settings that are read again to a model to serve."""

import json
from collections.abc import Callable
from functools import partial

from loguru import logger

from consumer import bootstrap_model
from consumer.bootstrap_model import DESCRIBING, Model
from consumer.clock import SystemClock
from consumer.model_spec import ModelPackage
from consumer.settings import KEYS, Settings, SwapSettings, value_of
from consumer.stages.batch import padded_sizes
from consumer.stages.infer import Inference
from consumer.stages.serving import Serving
from consumer.swap import Obtained, SwapRules, Wanted

_MODEL_KEYS = ("source", *DESCRIBING, "allow_provisional")
"""Those of [model] that say which model it is: a change of one asks for another model."""
_SWAP_KEYS = ("watch_interval_ms", "min_agreement", "shadow_images", "cpu_share")
_OTHER_LIVE_KEYS = ("download_deadline_ms", "cache_versions")
LIVE_KEYS = frozenset(
    {*(f"model.{key}" for key in (*_MODEL_KEYS, *_OTHER_LIVE_KEYS)), *(f"swap.{key}" for key in _SWAP_KEYS)}
)
"""Settings that a running replica reads again. All others hold from start to end."""

# Beside a first one under TensorFlow, a MobileNetV2 of 14 MB took 288 MiB at batches of 16 x 224 x 224
# (benchmarks.swap): its weights are there as loaded, as constants and as the runtime packs them, and what lies between
# two layers goes by the pixels. Rather too much than too little: the other way the kernel ends the replica.
_WEIGHTS_TIMES = 10
_BYTES_A_PIXEL = 150
_FIXED_BYTES = 64 * 1024 * 1024


def build_serving(settings: Settings, model: Model) -> Serving:
    """A model that is loaded, with the buffers of every batch size; not warm yet."""
    image = model.package.spec.input if model.package is not None else settings.model
    inference = Inference(
        model.runtime,
        model.labels,
        sizes=padded_sizes(settings.batch.max_size),
        top_k=settings.model.top_k,
        min_score=settings.model.min_score,
        clock=SystemClock(),
    )
    return Serving(
        model.decoder,
        model.sandbox,
        inference,
        decodes_as=(model.runtime.input_size, image.resize, image.crop),
        release=partial(_release, settings, model.package),
    )


def swap_rules(swap: SwapSettings) -> SwapRules:
    """`[swap]`, as the policy takes it."""
    return SwapRules(
        watch_interval_s=swap.watch_interval_ms / 1000,
        min_agreement=swap.min_agreement,
        shadow_images=swap.shadow_images,
        cpu_share=swap.cpu_share,
    )


class SourceWatch:
    """Asks what `model.source` stands for now, by the settings as they are now. One thread at a time."""

    def __init__(self, settings: Settings, read_settings: Callable[[], Settings]) -> None:
        self._started_with = settings
        self._read_settings = read_settings
        self._said: frozenset[str] = frozenset()

    @property
    def first_key(self) -> str:
        """The key of the model that the service started with, where no registry names versions."""
        return _key(self._started_with, "")

    def look(self) -> Wanted:
        """Raises SettingsError, and what `bootstrap_model.resolve_source` raises."""
        settings = self._settings_now()
        rules, source = swap_rules(settings.swap), settings.model.source
        if settings.model.runtime == "null":  # whatever the source is
            return Wanted(self.first_key, "the null runtime", rules, _nothing_to_obtain, source)
        version = bootstrap_model.resolve_source(settings)

        def obtain() -> Obtained:
            def load(runtime: str) -> Serving:
                return build_serving(settings, bootstrap_model.load_package(settings, package, preferred=runtime))

            package = bootstrap_model.obtain_package(settings, version=version)
            return Obtained(
                digest=package.digest,
                name=f"{package.spec.name} {package.spec.version}",
                needed_bytes=needed_bytes(package, settings.batch.max_size),
                load=load,
                release=partial(_release, settings, package),
            )

        if version is None:
            return Wanted(_key(settings, ""), source, rules, obtain, source)
        name = f"{source} ({version.version})"
        key = _key(settings, f"{version.version} {version.digest} {version.state}")
        return Wanted(key, name, rules, obtain, source, version.digest)

    def _settings_now(self) -> Settings:
        """Those that it started with, and of the keys that may change in a running replica what they are now."""
        now, then = self._read_settings(), self._started_with
        keys = [".".join(path) for path, kind in KEYS.items() if kind != "section"]
        changed = frozenset(key for key in keys if value_of(now, key) != value_of(then, key))
        others = changed - LIVE_KEYS
        if others - self._said:
            logger.warning("settings that hold until a restart have changed: {}", ", ".join(sorted(others)))
        self._said = others
        model = {key: getattr(now.model, key) for key in (*_MODEL_KEYS, *_OTHER_LIVE_KEYS)}
        swap = {key: getattr(now.swap, key) for key in _SWAP_KEYS}
        return then.model_copy(
            update={"model": then.model.model_copy(update=model), "swap": then.swap.model_copy(update=swap)}
        )


def needed_bytes(package: ModelPackage, max_batch: int) -> int:
    """Memory that a model will about take beside another of the same runtime."""
    files = package.files
    if files.is_dir():
        found = [path for path in files.rglob("*") if path.is_file()]
    else:  # the weights of an OpenVINO `.xml`, and of a large ONNX model, are beside it under the same name
        found = [path for path in files.parent.iterdir() if path.name.startswith(files.stem) and path.is_file()]
    weights = sum(path.stat().st_size for path in found)
    height, width = package.spec.input.size
    return _FIXED_BYTES + _WEIGHTS_TIMES * weights + _BYTES_A_PIXEL * max_batch * height * width


def _release(settings: Settings, package: ModelPackage | None) -> None:
    if package is not None:
        bootstrap_model.release_package(settings, package)


def _key(settings: Settings, version: str) -> str:
    return json.dumps([version, *(getattr(settings.model, key) for key in _MODEL_KEYS)])


def _nothing_to_obtain() -> Obtained:
    raise NotImplementedError("the null runtime has no model to obtain")
