"""The figures of a machine with a GPU in one file, and the tables of the docs from it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.growth.curve import Found, middle, short, text

Rows = list[list[str]]
FIGURES = "gpu.json"
"""Of `figures/`."""
_BATCH = ", batch of "
_SERVICE_BATCH = 64
"""As the service runs with; its GPU limit is the best of the sizes up to it."""


def noted(documents: Mapping[str, Found], date: str) -> Found:
    """One document: what `parts`, `runtime` and `service` wrote, and of `ouzel bench` what is used here."""
    bench = documents["bench"]
    return {
        "date": date,
        **{name: documents[name] for name in ("parts", "runtime", "service")},
        "bench": {
            name: _rounded(bench[name])
            for name in (
                *("machine", "facts", "rounds", "terms", "free_cores", "roofline", "achieved", "ratio", "parts"),
                *("service_cpu_ms", "broker_cpu_ms", "mean_batch", "first_event_s", "warnings"),
            )
        },
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return short(value)
    if isinstance(value, Mapping):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


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
        on_gpu = infer is not None
        least = min(decode, infer) if infer is not None else None
        rows.append(
            [
                point["what"],
                text(point["images_per_s"]),
                f"{decode:,.0f}" if on_gpu else "",
                f"{infer:,.0f}" if on_gpu else "",
                f"{middle(point, 'images_per_s') / least:.2f}" if least else "",
                text(point["service_cpu_ms"], 2),
                f"{middle(point, 'service_cores'):.1f}",
                f"{middle(point, 'broker_cores'):.1f}",
                f"{middle(point, 'mean_batch'):.0f}",
                text(point["ready_s"], 1),
            ]
        )
    return rows


def limits(found: Found, point: Mapping[str, Any]) -> tuple[float, float | None]:
    """Images/s that the cores decode in this case, and that the GPU infers; None on the cores alone.

    1000 C / (t_fetch + t_decode + t_ovh), with C the cores less what broker and watching took in this case, and the
    best images/s of the service's own runtime at a batch of up to 64.
    """
    terms = found["bench"]["terms"]
    resizer = "simd" if "simd" in point["what"] else "pillow"
    decode_ms = middle(_point(found["parts"], f"decode, cores, {resizer}, one process"), "cpu_ms")
    image_ms = terms["fetch_used_ms"]["median"] + decode_ms + terms["overhead_ms"]["median"]
    cores = found["service"]["machine"]["cores"] - middle(point, "broker_cores") - middle(point, "watching_cores")
    if not point["what"].startswith("GPU"):
        return 1000 * cores / image_ms, None
    precision = "f16" if "f16" in point["what"] else "f32"
    rates = [
        middle(each, "images_per_s")
        for each in found["runtime"]["points"]
        if each["what"].startswith(f"runtime {precision}, GPU{_BATCH}")
        and int(each["what"].rpartition(" ")[2]) <= _SERVICE_BATCH
    ]
    return 1000 * cores / image_ms, max(rates)


def _point(document: Found, what: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(each for each in document["points"] if each["what"] == what)
    return found
