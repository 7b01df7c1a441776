"""The figures of a machine with a GPU in one file, and the tables of the docs from it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.growth.curve import Found, middle, text

Rows = list[list[str]]
FIGURES = "gpu.json"
"""Of `figures/`."""
_BATCH = ", batch of "
_SERVICE_BATCH = 64
"""As the service runs with."""


def noted(documents: Mapping[str, Found], date: str) -> Found:
    """One document of what `parts`, `runtime` and `service` wrote."""
    return {"date": date, "machine": documents["parts"]["machine"], **documents}


def tables(found: Found) -> Iterator[tuple[str, Rows]]:
    """Name and rows of each table."""
    yield "gpu-decode", _decode(found["parts"])
    yield "gpu-infer", _infer([*found["runtime"]["points"], *found["parts"]["points"]])
    yield "gpu-service", _service(found)


def _decode(parts: Found) -> Rows:
    shown = [each for each in parts["points"] if each["what"].startswith(("decode", "JPEG"))]
    rows = [[each["what"], text(each["images_per_s"]), text(each["cpu_ms"], 2)] for each in shown]
    return [["", "images/s", "CPU-ms an image"], *rows]


def _infer(points: Sequence[Mapping[str, Any]]) -> Rows:
    """A row a precision, a column a batch size."""
    by_name: dict[str, dict[int, str]] = {}
    for point in points:
        name, _, batch = point["what"].partition(_BATCH)
        if name.startswith(("runtime", "torch")):
            by_name.setdefault(name, {})[int(batch)] = text(point["images_per_s"])
    sizes = sorted({size for each in by_name.values() for size in each})
    heading = ["images/s", *(f"batch of {size}" for size in sizes)]
    return [heading, *([name, *(each.get(size, "") for size in sizes)] for name, each in by_name.items())]


# --- the service ----------------------------------------------------------------------------------------------------


def _service(found: Found) -> Rows:
    heading = ["", "images/s", "decode limit", "GPU limit", "over the lesser", "service, CPU-ms an image"]
    rows = [[*heading, "cores: service", "broker", "images in a batch", "ready, s"]]
    for point in found["service"]["points"]:
        decode, infer = limits(found, point)
        rows.append(
            [
                point["what"],
                text(point["images_per_s"]),
                f"{decode:,.0f}",
                f"{infer:,.0f}" if infer else "",
                f"{middle(point, 'images_per_s') / min(decode, infer):.2f}" if infer else "",
                text(point["service_cpu_ms"], 1),
                f"{middle(point, 'service_cores'):.1f}",
                f"{middle(point, 'broker_cores'):.1f}",
                f"{middle(point, 'mean_batch'):.0f}",
                text(point["ready_s"], 1),
            ]
        )
    return rows


def limits(found: Found, point: Mapping[str, Any]) -> tuple[float, float | None]:
    """Images/s that the cores decode in this case, and that the GPU infers; None on the cores alone.

    Of one replica what one process decodes in as many threads as there are cores, of several what as many processes do;
    of both the share of the cores that broker and watching left. And what the service's own runtime infers.
    """
    resizer = "simd" if "simd" in point["what"] else "pillow"
    how = "one process" if "1 replica" in point["what"] else "processes"
    cores = found["machine"]["cores"]
    left = 1 - (middle(point, "broker_cores") + middle(point, "watching_cores")) / cores
    decode = left * middle(_point(found["parts"], f"decode, cores, {resizer}, {how}"), "images_per_s")
    if not point["what"].startswith("GPU"):
        return decode, None
    precision = "f16" if "f16" in point["what"] else "f32"
    infer = _point(found["runtime"], f"runtime {precision}, GPU{_BATCH}{_SERVICE_BATCH}")
    return decode, middle(infer, "images_per_s")


def _point(document: Found, what: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(each for each in document["points"] if each["what"] == what)
    return found
