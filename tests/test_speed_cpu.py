"""What a CPU's kernels can use of it: by engine, format, instructions and build; by threads and memory nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from estimators import cpu_kernels, formats
from estimators.deployment import Deployment, Placement, Settings, Workload
from estimators.efficiency import Situation
from estimators.observation import (
    READ_SHARE,
    bandwidth_bytes_per_s,
    cores_share,
    fast_cores,
    meeting,
    situation,
)
from estimators.peaks import family, peaks
from hwdb.catalogue import load
from hwdb.device import Device, Machine
from planner import names, row_speed, spill

AVX2, VNNI, WIDE = (
    ("avx2",),
    ("avx2", "avx512", "avx512_vnni"),
    ("avx2", "avx512", "avx512_wide", "avx512_vnni"),
)
NEON, DOTPROD = ("neon",), ("neon", "dotprod")


def cpu(**changes: object) -> Device:
    one = Device(
        "x", "X", "AMD", "cpu", bandwidth_bytes_per_s=80e9, fp32_flops=1e12, cpu_cores=16, cpu_isa=AVX2
    )
    return replace(one, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("isa", [AVX2, VNNI, WIDE, NEON, DOTPROD, ("neon", "dotprod", "i8mm"), ("rv64gcv",)])
@pytest.mark.parametrize("format_class", formats.CLASSES)
def test_newer_builds_never_lose_a_kernel_nor_speed(isa: tuple[str, ...], format_class: str) -> None:
    order = {"dot": 0, "tiles": 1, "blocks": 1, "slabs": 1, "repack": 2}
    kinds = [cpu_kernels.kernels("llama.cpp", "cpu", format_class, isa, 2023.0 + y / 12) for y in range(48)]
    assert [order[k] for k in kinds] == sorted(order[k] for k in kinds)
    gains = [cpu_kernels.integer_gain(k, isa) for k in kinds]
    assert gains == sorted(gains)
    assert min(gains) >= 1.0


def test_superblocks_that_are_not_interleaved_are_unpacked_for_many_tokens_since_autumn_2026() -> None:
    def kind(format_class: str, flags: tuple[str, ...], year: float, engine: str = "llama.cpp") -> str:
        return cpu_kernels.kernels(engine, "cpu", format_class, flags, year)

    assert kind("k5", AVX2, 2026.5) == "dot"
    assert kind("k5", AVX2, cpu_kernels.PRESENT_YEAR) == "slabs"
    assert kind("iq4", AVX2, cpu_kernels.PRESENT_YEAR) == "slabs"
    assert kind("k4", AVX2, cpu_kernels.PRESENT_YEAR) == "repack"
    assert kind("k5", DOTPROD, cpu_kernels.PRESENT_YEAR) == "repack"
    assert kind("k5", NEON, cpu_kernels.PRESENT_YEAR) == "dot"
    assert kind("k5", AVX2, cpu_kernels.PRESENT_YEAR, "ollama") == "dot"
    assert cpu_kernels.integer_gain("slabs", VNNI) == 4.0


def test_register_tiles_take_floats_and_blocks_of_integers_and_bf16_later() -> None:
    def kind(format_class: str, year: float) -> str:
        return cpu_kernels.kernels("llama.cpp", "cpu", format_class, AVX2, year)

    assert [kind("f16", 2024.1), kind("f16", 2024.5)] == ["dot", "tiles"]
    assert [kind("bf16", 2024.5), kind("bf16", 2025.0)] == ["dot", "tiles"]
    assert kind("q8", 2025.0) == "blocks"


def test_blocks_of_q5_0_are_multiplied_as_q8_0s_on_x86_and_those_of_q5_1_one_by_one() -> None:
    def kind(format_class: str, isa: tuple[str, ...], year: float) -> str:
        return cpu_kernels.kernels("llama.cpp", "cpu", format_class, isa, year)

    assert [kind("q5_0", AVX2, 2024.5), kind("q5_0", AVX2, 2025.0)] == ["dot", "blocks"]
    assert kind("q5_0", DOTPROD, cpu_kernels.PRESENT_YEAR) == "dot"
    assert kind("q5_1", AVX2, cpu_kernels.PRESENT_YEAR) == "dot"


def test_who_gives_no_date_runs_todays_kernels_on_a_cpu() -> None:
    def built(backend: str, year: float | None) -> float:
        settings = Settings(year=year)
        d = Deployment(
            None, None, Machine("x", host=cpu()), "llama.cpp", backend, Placement(), Workload(), settings
        )  # type: ignore[arg-type]
        return situation(d, cpu()).year

    assert built("cpu", None) == cpu_kernels.PRESENT_YEAR
    assert built("cpu", 2025.5) == 2025.5
    assert built("cuda", None) < 2026.5


def test_ggmls_kernels_for_cpus_share_no_effect_with_those_for_accelerators() -> None:
    labels = {
        b: Situation("llama.cpp", "ggml", b, "x", "x").label("engine") for b in ("cpu", "cuda", "vulkan")
    }
    assert labels["cuda"] == labels["vulkan"] != labels["cpu"]
    assert Situation("vllm", "graph", "cpu", "x", "x").label("engine") == "vllm"


def test_k_quants_are_interleaved_from_their_pull_requests_on() -> None:
    def kind(flags: tuple[str, ...], year: float) -> str:
        return cpu_kernels.kernels("llama.cpp", "cpu", "k4", flags, year)

    assert kind(AVX2, 2025.1) == "dot"
    assert kind(AVX2, 2025.3) == "repack"
    assert kind(DOTPROD, 2025.3) == "dot"
    assert kind(DOTPROD, 2026.0) == "repack"
    assert cpu_kernels.kernels("llama.cpp", "cpu", "k6", AVX2, 2026.5) == "dot"


def test_llamafile_has_ik_llamas_kernels_for_packed_formats() -> None:
    assert cpu_kernels.kernels("llamafile", "cpu", "k4", AVX2, 2025.2) == "iqk"
    assert cpu_kernels.kernels("llamafile", "cpu", "f16", AVX2, 2025.2) == "tiles"


def test_ollama_is_built_without_matrix_tiles() -> None:
    tiled = (*WIDE, "amx_int8")
    assert cpu_kernels.kernels("llama.cpp", "cpu", "q4_0", tiled, 2026.0) == "amx"
    assert cpu_kernels.kernels("ollama", "cpu", "q4_0", tiled, 2026.0) == "repack"


def test_only_llama_cpps_kin_on_cpus_has_such_kernels() -> None:
    assert cpu_kernels.kernels("llama.cpp", "cuda", "k4", AVX2, 2026.0) == ""
    assert Situation("vllm", "graph", "cpu", "cpu-x86", "x", isa=AVX2).kernels("k4") == ""
    present = Situation("llama.cpp", "ggml", "cpu", "cpu-x86", "x", year=cpu_kernels.PRESENT_YEAR, isa=AVX2)
    assert {present.gemv(x) for x in ("f16", "q8", "k5")} == {"dot"}


def test_wide_vectors_do_not_help_dot_products_of_256_bits() -> None:
    """The same cores with twice the vector width: twice the FP32 rate, the same rate of dot products."""
    narrow, wide = cpu(cpu_isa=VNNI), cpu(cpu_isa=WIDE, fp32_flops=2e12)
    for format_class in ("k6", "q8"):
        rates = [
            peaks(d, "ggml", "cpu", format_class, engine="llama.cpp", year=2026.0) for d in (narrow, wide)
        ]
        assert rates[0] is not None
        assert rates[1] is not None
        assert rates[0].matrix == rates[1].matrix
        assert rates[0].vector == rates[1].vector


def test_floats_of_16_bits_are_widened_in_vectors_of_512_bits() -> None:
    for format_class in ("f16", "bf16"):
        found = peaks(cpu(cpu_isa=WIDE, fp32_flops=2e12), "ggml", "cpu", format_class, engine="llama.cpp")
        assert found is not None
        assert found.vector == 2e12


def test_each_further_instruction_set_is_at_least_as_fast() -> None:
    for kind in ("dot", "blocks", "repack", "slabs", "iqk"):
        x86 = [cpu_kernels.integer_gain(kind, isa) for isa in (("sse4_1",), AVX2, VNNI)]
        arm = [cpu_kernels.integer_gain(kind, isa) for isa in (NEON, DOTPROD)]
        assert x86 == sorted(x86)
        assert arm == sorted(arm)


def test_tiled_flash_attention_is_faster_than_one_query_at_a_time() -> None:
    before, after = (cpu_kernels.attention_gain("llama.cpp", year, True) for year in (2025.9, 2026.1))
    assert before < after == cpu_kernels.attention_gain("llama.cpp", 2025.9, False)
    assert before < 0.1 * after  # 75 GFLOPS of sixteen cores, 125 of two


def test_a_decoded_token_attends_at_one_rate_with_every_build_that_meets_its_heads_one_by_one() -> None:
    def share(engine: str, year: float, flash: bool, lineage: str = "ggml", backend: str = "cpu") -> float:
        return cpu_kernels.decoding_share(engine, lineage, backend, year, flash)

    builds = [("llama.cpp", 2025.3, True), ("llama.cpp", 2026.8, True), ("llama.cpp", 2026.8, False)]
    rates = [share(*b) * cpu_kernels.attention_gain(*b) for b in builds]
    assert rates == pytest.approx([cpu_kernels.DECODING_GAIN] * 3)
    assert share("llama.cpp", 2026.8, True) < 1.0 == share("ik_llama.cpp", 2026.8, True)
    assert share("llama.cpp", 2026.8, True, backend="cuda") == share("vllm", 2026.8, True, "graph") == 1.0


def test_bf16_needs_its_own_products_to_be_faster_than_fp32() -> None:
    def rate(isa: tuple[str, ...]) -> float:
        found = peaks(cpu(cpu_isa=isa, bf16_tensor_flops=100e12), "ggml", "cpu", "bf16")
        assert found is not None
        return found.matrix

    assert rate(AVX2) == 1e12
    assert rate((*WIDE, "avx512_bf16", "amx_bf16")) == 2e12


def test_threads_add_arithmetic_but_less_than_in_proportion() -> None:
    shares = [cores_share(cpu(), n) for n in (1, 2, 4, 8, 16, 32)]
    assert shares == sorted(shares)
    assert shares[-1] == shares[-2] == 1.0
    assert all(share >= n / 16 for share, n in zip(shares, (1, 2, 4, 8, 16), strict=False))


def test_a_measured_processor_has_the_bandwidth_that_so_many_threads_read() -> None:
    read = ((1, 20e9), (4, 50e9), (8, 60e9))
    one = cpu(basis="measured", cpu_cores=16, bandwidth_bytes_per_s=60e9, thread_bandwidths=read)
    found = [bandwidth_bytes_per_s(one, "cpu", n) for n in (1, 2, 4, 8, 16, None)]
    assert [x and x * READ_SHARE for x in found] == pytest.approx([20e9, 30e9, 50e9, 60e9, 60e9, 60e9])


def test_rates_measured_with_few_threads_are_those_of_few_threads() -> None:
    one = cpu(basis="measured", thread_bandwidths=((1, 20e9), (8, 60e9)))
    assert cores_share(one, 8) == 1.0
    assert cores_share(one, 4) == cores_share(cpu(cpu_cores=8), 4)
    assert cores_share(one, None) == cores_share(one, 16) > 1.0


def test_hybrids_count_their_performance_cores() -> None:
    mac = load().get("apple-m2-max-cpu")
    assert (mac.cpu_cores, fast_cores(mac)) == (12, 8)
    assert cores_share(mac, 8) == 1.0
    assert family(mac) == "cpu-apple"


def test_many_threads_meet_later_and_few_at_no_cost() -> None:
    large = cpu(cpu_cores=128)
    waits = [meeting(large, "cpu", n) for n in (1, 16, 32, 128, 256)]
    assert waits[:2] == [1.0, 1.0]
    assert waits == sorted(waits)
    assert waits[-1] == waits[-2] == 8.0
    assert meeting(large, "cuda", None) == 1.0


def test_further_sockets_and_nodes_add_a_share_of_their_memory() -> None:
    one, two = cpu(), names.sockets(cpu(), 2)
    assert (two.cpu_sockets, two.cpu_cores, two.fp32_flops) == (2, 32, 2e12)
    alone, both = bandwidth_bytes_per_s(one, "cpu", None), bandwidth_bytes_per_s(two, "cpu", None)
    assert alone is not None
    assert both is not None
    assert alone < both < 2 * alone
    split = bandwidth_bytes_per_s(cpu(memory_nodes=3), "cpu", None)
    assert split is not None
    assert alone / 3 < split < alone


def test_a_measured_bandwidth_stands_for_a_datasheets() -> None:
    found = bandwidth_bytes_per_s(cpu(basis="measured"), "cpu", None)
    assert found == pytest.approx(80e9 / READ_SHARE)


def test_builds_without_tensor_overrides_keep_layers_whole() -> None:
    assert not spill.splits_experts("llama.cpp", 2025.2)
    assert spill.splits_experts("llama.cpp", 2025.3)
    assert spill.splits_experts("ik_llama.cpp", 2025.2)
    assert not spill.splits_experts("ollama", 2026.0)


def test_prompts_that_a_listed_gpu_took_are_told_apart() -> None:
    row = {"notes": "llama-sweep-bench row; RTX 3090 listed in log but heading says CPU logs"}
    assert row_speed._prompts_elsewhere(row, "cpu", "prefill_tps")
    assert not row_speed._prompts_elsewhere(row, "cpu", "decode_tps")
    assert not row_speed._prompts_elsewhere({"notes": "GPU core count not stated"}, "cpu", "prefill_tps")
