"""Which units and paths llama.cpp's kernels take: peaks by build and toolchain, attention, stages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from estimators import speed
from estimators.deployment import Deployment, Placement, Settings, Workload
from estimators.observation import layout, link_bytes_per_s
from estimators.peaks import peaks
from estimators.walk import Walk, walk
from hwdb import catalogue as devices
from hwdb.device import Device, Machine
from modeldb import catalogue as models
from modeldb import schemes
from planner import labels

RATES = speed.Rates(1e12, 1e14, 1e13, 1e14, chunk_tokens=512)


def device(name: str) -> Device:
    return devices.load().resolve(name)


def of(model: str, scheme: str = "Q4_K_M") -> Walk:
    return walk(models.load().resolve(model), schemes.get(scheme))


def test_products_without_hipblaslt_run_on_vectors_where_rocblas_has_no_kernels() -> None:
    card = device("radeon-ai-pro-r9700")
    for format_class, year in (("bf16", 2026.0), ("k4", 2025.5)):
        plain = peaks(card, "ggml", "rocm", format_class, year=year)
        without = peaks(card, "ggml", "rocm", format_class, year=year, toolchain="rocblas")
        assert plain is not None
        assert without is not None
        assert plain.matrix == card.fp16_tensor_flops
        assert without.matrix == card.fp32_flops
    packed = peaks(card, "ggml", "rocm", "k4", year=2026.0, toolchain="rocblas")  # MMQ: no library
    assert packed is not None
    assert packed.matrix == card.fp16_tensor_flops


def test_attention_of_amd_cards_waited_for_matrix_units() -> None:
    card = device("radeon-ai-pro-r9700")
    early, built, late = (
        peaks(card, "ggml", "rocm", "k4", year=year, toolchain=toolchain)
        for year, toolchain in ((2025.9, ""), (2025.9, "rocwmma"), (2026.3, ""))
    )
    assert early is not None
    assert built is not None
    assert late is not None
    assert early.attention < built.attention == late.attention


def test_bf16_on_vulkan_has_matrix_units_on_nvidia_only() -> None:
    for name, reached in (("radeon-ai-pro-r9700", "fp32_flops"), ("arc-pro-b70-32gb", "fp32_flops")):
        found = peaks(device(name), "ggml", "vulkan", "bf16")
        assert found is not None
        assert found.matrix == getattr(device(name), reached)
    found = peaks(device("rtx 4090"), "ggml", "vulkan", "bf16")
    assert found is not None
    assert found.matrix > (device("rtx 4090").fp32_flops or 0)


def test_old_amd_cards_multiply_packed_weights_as_dot_products() -> None:
    card = device("instinct-mi50-32gb")
    found = peaks(card, "ggml", "rocm", "q4_0")
    assert found is not None
    assert found.matrix == card.int8_ops


@pytest.mark.parametrize(
    ("note", "backend", "word"),
    [
        ("env rocm6_4_4-hblt0", "rocm", "rocblas"),
        ("env rocm7.1.1", "rocm", ""),
        ("llama.cpp-hip fa=-fa 1 b= hipblaslt=", "rocm", "rocblas"),
        ("llama.cpp-hip fa=-fa 1 b= hipblaslt=1", "rocm", ""),
        ("llama.cpp-rocwmma fa= b= hipblaslt=", "rocm", "rocwmma+rocblas"),
        ("llama.cpp-vulkan fa= b= hipblaslt=", "vulkan", ""),
        ("llama.cpp-vulkan_amdvlk fa= b= hipblaslt=", "vulkan", "amdvlk"),
        ("env vulkan_radv", "vulkan", ""),
        ("", "rocm", ""),
    ],
)
def test_toolchains_are_read_from_remarks(note: str, backend: str, word: str) -> None:
    assert labels.toolchain(note, backend) == word


def test_plain_attention_costs_more_the_deeper_the_context() -> None:
    w = of("llama-3.1-8b-instruct")
    extra = [
        speed.prefill(w, replace(RATES, plain=True), 512.0, depth).total_s
        / speed.prefill(w, RATES, 512.0, depth).total_s
        for depth in (0.0, 4096.0, 32768.0)
    ]
    assert 1.0 < extra[0] < extra[1] < extra[2]


def test_compressed_latents_cost_more_in_prompts_and_nothing_without_latents() -> None:
    for model, alike in (("glm-4.7-flash", False), ("llama-3.1-8b-instruct", True)):
        w = of(model)
        expanded = speed.prefill(w, RATES, 2048.0, 32768.0).total_s
        compressed = speed.prefill(w, replace(RATES, absorbed=True), 2048.0, 32768.0).total_s
        assert compressed == expanded if alike else compressed > 1.5 * expanded


def test_a_masked_indexer_saves_nothing() -> None:
    w = of("deepseek-v4-flash")
    assert w.top_k_tokens > 0
    masked = speed.prefill(w, replace(RATES, masked=True), 512.0, 65536.0).cache_s
    assert masked > speed.prefill(w, RATES, 512.0, 65536.0).cache_s


@pytest.mark.parametrize("stages", [2, 4, 8])
def test_stages_overlap_at_most_as_many_micro_batches_as_are_in_flight(stages: int) -> None:
    w = of("llama-3.1-8b-instruct")
    one = replace(RATES, layer_overhead_s=0.0, step_overhead_s=0.0, attention_peak_flops=1e30)
    many = replace(one, n_stages=stages, hop_overhead_s=0.0, pipelined=True)
    lengths = np.array([512.0, 1024.0, 4096.0, 65536.0])
    gain = speed.prefill(w, one, lengths).weights_s / speed.prefill(w, many, lengths).weights_s
    assert gain[0] == pytest.approx(1.0)
    assert np.all(np.diff(gain) > 0)
    assert gain[-1] < min(stages, speed.PIPELINE_CHUNKS)
    assert gain[-1] == pytest.approx(min(stages, speed.PIPELINE_CHUNKS), rel=0.06)


def test_micro_batches_never_exceed_the_batch_and_only_llama_cpp_overlaps_stages() -> None:
    card = device("rtx 3090")
    d = Deployment(
        models.load().resolve("qwen3-14b"), schemes.get("Q4_K_M"), Machine("x", (card,) * 4), "llama.cpp",
        "cuda", Placement(pipeline_parallel=4), Workload(prompt_tokens=4096, output_tokens=1),
        Settings(year=2025.5, micro_batch_tokens=4096, batch_tokens=2048),
    )  # fmt: skip
    split = layout(d)
    assert split.chunk_tokens == 2048
    assert split.pipelined
    forked = layout(d.with_(engine="ik_llama.cpp"))
    assert not forked.pipelined
    assert not forked.absorbed


def test_geforce_pairs_meet_over_pcie() -> None:
    card = device("rtx 3090")
    assert card.pcie is not None
    assert link_bytes_per_s(card, 2) == card.pcie.bytes_per_s
