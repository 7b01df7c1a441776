"""Starting OpenVINO: imported without what makes a network call, and its name of the device to use."""

import sys
from contextlib import suppress
from typing import Any

from consumer.errors import CannotRun, DeviceMissing, ModelError

_INSTALL = "pip install '.[openvino]'"
# Importing `openvino` imports its converter for what it calls convert_model, and that sends its own version to Google
# Analytics by a thread, writes below ~/intel, and takes longer than all the rest. Reading models needs none of it.
_CONVERTER, _TELEMETRY = "openvino.tools.ovc", "openvino_telemetry"


def import_openvino() -> Any:
    """The `openvino` module; 0.1 s. Whoever imports it goes through here: nothing is sent anywhere.

    Of a process that was here first, `openvino_telemetry` cannot be imported any more, which OpenVINO and NNCF take as
    not installed.

    Raises:
        CannotRun: not installed, or broken.
    """
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    blocked: dict[str, Any] = sys.modules
    blocked.setdefault(_TELEMETRY, None)
    blocked[_CONVERTER] = None
    try:
        import openvino
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "openvino"
        raise CannotRun(
            "OpenVINO is not installed" if absent else f"OpenVINO cannot be imported: {error}", remedy=_INSTALL
        ) from error
    finally:
        with suppress(KeyError):
            del blocked[_CONVERTER]  # a tool that converts may import it, without telemetry
    return openvino


def choose_device(core: Any, device: str) -> str:
    """OpenVINO's name of the device: `CPU`, or `GPU.0` and so on, which are Intel's. Not run on a GPU yet.

    Raises:
        ModelError: no such device.
        DeviceMissing: a GPU that is asked for and is not there.
    """
    if device == "cpu":
        return "CPU"
    number = "0" if device == "auto" else device.removeprefix("gpu:")
    if device != "auto" and not (device.startswith("gpu:") and number.isdecimal()):
        raise ModelError(f"model.device {device!r} is unknown", remedy="set model.device to auto, cpu or gpu:0")
    gpus = [name for name in core.available_devices if name.partition(".")[0] == "GPU"]
    if int(number) < len(gpus):
        return str(gpus[int(number)])
    if device == "auto":
        return "CPU"
    raise DeviceMissing(
        f"model.device is {device!r} and OpenVINO sees {len(gpus)} Intel GPU(s)",
        remedy="install Intel's GPU driver (OpenCL), set model.device to cpu, or, for a GPU of NVIDIA's,"
        ' model.runtime to "tensorflow" or "onnxruntime"',
    )
