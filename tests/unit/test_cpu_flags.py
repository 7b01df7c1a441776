"""What /proc/cpuinfo says."""

import pytest

from consumer.adapters.cpu_flags import cpu_flags, cpu_name, noted, precisions

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu sse2 avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_int8
bugs\t\t: none

processor\t: 1
flags\t\t: fpu
"""
ARM = "processor\t: 0\nBogoMIPS\t: 2100.00\nFeatures\t: fp asimd bf16 i8mm\n"


def test_flags_and_name_are_those_of_the_first_processor() -> None:
    assert {"avx2", "amx_bf16", "fpu"} <= cpu_flags(X86)
    assert cpu_name(X86) == "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"
    assert cpu_flags(ARM) == {"fp", "asimd", "bf16", "i8mm"}
    assert (cpu_flags(""), cpu_name("")) == (frozenset(), "")


def test_those_that_matter_are_noted_in_one_order() -> None:
    assert noted(cpu_flags(X86)) == ["avx2", "avx512f", "avx512_vnni", "amx_int8", "avx512_bf16", "amx_bf16"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("avx2", ("bf16 is refused: it needs amx_bf16 or avx512_bf16", "int8 gains less without VNNI")),
        ("avx2 avx512_vnni", ("bf16 is refused", "int8 is fast")),
        ("avx2 avx512_vnni avx512_bf16", ("bf16 is fast", "int8 is fast")),
    ],
)
def test_which_precisions_make_sense_follows_from_the_flags(flags: str, words: tuple[str, ...]) -> None:
    for word in words:
        assert word in precisions(flags.split())
