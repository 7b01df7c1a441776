"""What the CPU can do, by Linux's names for it, and which precisions pay on it."""

from collections.abc import Collection
from pathlib import Path

NOTED = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8"),
    *("avx512_bf16", "amx_bf16", "avx512_fp16", "amx_fp16"),
)
"""The flags that tables and the doctor name: they decide how fast a model runs in which precision."""
BF16 = frozenset({"avx512_bf16", "amx_bf16"})
"""With one of these a CPU computes in bf16. Without, runtimes take the hint all the same and run three times slower."""
_INT8 = frozenset({"avx_vnni", "avx512_vnni", "amx_int8"})


def cpu_flags(text: str | None = None) -> frozenset[str]:
    """The flags that `/proc/cpuinfo` lists, or those of `text`, which is written alike; empty where there is no such
    file."""
    return frozenset(_first(text, "flags", "Features").split())


def cpu_name(text: str | None = None) -> str:
    """The CPU's name there; empty where there is none."""
    return _first(text, "model name", "Hardware")


def noted(flags: Collection[str]) -> list[str]:
    """Those of `NOTED`, in its order."""
    return [flag for flag in NOTED if flag in flags]


def precisions(flags: Collection[str]) -> str:
    """One line for people: which precisions make sense on a CPU with these flags."""
    half = "bf16 is fast here" if BF16 & set(flags) else f"bf16 is refused: it needs {' or '.join(sorted(BF16))}"
    int8 = "int8 is fast here" if _INT8 & set(flags) else "int8 gains less without VNNI"
    return f"f32 always; {half}; {int8}; f16 is for GPUs"


def _first(text: str | None, *names: str) -> str:
    """The value of the first line with one of these names."""
    if text is None:
        try:
            text = Path("/proc/cpuinfo").read_text()
        except OSError:
            return ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in names:
            return value.strip()
    return ""
