"""Which units and paths llama.cpp's kernels take: peaks by build and toolchain, attention, stages."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from estimators import calibration, measurements, speed
from estimators.deployment import Backend, Deployment, Placement, Settings, Workload
from estimators.efficiency import Situation, evaluate, load
from estimators.formats import CLASSES
from estimators.observation import Observation, layout, link_bytes_per_s, situation
from estimators.observation import rows as observation_rows
from estimators.peaks import RESCALING, Peaks, peaks
from estimators.phases import side
from estimators.walk import Walk, walk
from hwdb import catalogue as devices
from hwdb.device import Device, Machine
from modeldb import catalogue as models
from modeldb import schemes
from planner import labels, row_speed
from planner.asks import Refusal
from planner.rows import READS

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


@pytest.mark.parametrize(("format_class", "since"), [("q4_0", 2025.28), ("q8", 2025.28), ("k4", 2025.83)])
def test_vulkan_multiplies_as_integers_where_there_are_no_matrix_units(
    format_class: str, since: float
) -> None:
    def rate(name: str, year: float, kind: str = format_class) -> float:
        found = peaks(device(name), "ggml", "vulkan", kind, year=year)
        assert found is not None
        return found.matrix

    for name in ("rx 6800 xt", "instinct-mi50-32gb", "arc a770", "gtx 1080 ti"):
        assert rate(name, since + 0.01) > rate(name, since - 0.01)
        assert rate(name, since + 0.01, "iq3") == rate(name, since - 0.01, "iq3")  # looked up in tables
    for name in ("rx 7900 xtx", "arc b580", "rtx 4090", "amd-rx-580"):  # matrix units, or no such products
        assert rate(name, since + 0.01) == rate(name, since - 0.01)


def test_matrix_units_of_apple_gpus_serve_attention_in_mlx_only() -> None:
    new, old = device("apple-m5-max-40-core-gpu"), device("apple-m4-max-40-core-gpu")
    for card, lineage, shared in ((new, "mlx", True), (new, "ggml", False), (old, "mlx", True)):
        found = peaks(card, lineage, "metal", "f16")
        assert found is not None
        assert (found.attention == found.matrix) is shared
    assert old.fp32_flops == peaks(old, "mlx", "metal", "f16").attention  # type: ignore[union-attr]


def test_small_batches_run_kernels_for_vectors_and_metal_fills_whole_tiles() -> None:
    w, metal = of("llama-3.1-8b-instruct"), replace(RATES, vector_tokens=8.0, tile_tokens=32.0)
    times = [float(speed.step(w, metal, n, n, 0.0, 0.0).total_s) for n in range(1, 129)]
    assert times == sorted(times)
    flat = [float(speed.step(w, metal, n, 1.0, 0.0, 0.0).weights_s) for n in (16, 24, 32)]
    assert flat[0] == flat[1] == flat[2]
    one, two, eight, nine = (float(speed._multiplied_s(1e9, n, metal)) for n in (1, 2, 8, 9))
    assert two == pytest.approx(2 * one)
    assert two < eight <= nine < 8 * one  # a tile takes less than eight vectors here
    cuda = replace(metal, tile_tokens=1.0)
    assert float(speed._multiplied_s(1e9, 512, cuda)) == float(speed._multiplied_s(1e9, 512, metal))


def test_experts_below_a_tile_are_read_once_per_token() -> None:
    w, shared = of("qwen3-30b-a3b"), replace(RATES, vector_tokens=8.0)
    metal = replace(shared, tile_tokens=32.0)
    moved = [[float(speed._experts_s(w, r, n)[0]) for n in (1, 2, 8, 32, 64)] for r in (metal, shared)]
    assert moved[0][1] == pytest.approx(2 * moved[0][0])
    assert moved[0][2] == pytest.approx(8 * moved[0][0])
    assert moved[0][2] > moved[1][2]
    assert moved[0][0] == pytest.approx(moved[1][0])
    assert moved[0][3:] == moved[1][3:]
    times = [float(speed.step(w, metal, n, n, 0.0, 0.0).total_s) for n in range(1, 129)]
    assert times == sorted(times)


@pytest.mark.parametrize(("engine", "backend", "tokens"), [
    ("llama.cpp", "metal", (8.0, 32.0)), ("ollama", "cuda", (8.0, 1.0)), ("llama.cpp", "cpu", (0.0, 1.0)),
    ("mlx", "metal", (0.0, 1.0)), ("vllm", "cuda", (0.0, 1.0)),
])  # fmt: skip
def test_only_llama_cpps_gpu_kernels_differ_by_batch(
    engine: str, backend: str, tokens: tuple[float, float]
) -> None:
    d = Deployment(
        models.load().resolve("qwen3-8b"),
        schemes.get("Q4_K_M"),
        Machine("x", ()),
        engine,
        cast(Backend, backend),
    )
    assert (layout(d).vector_tokens, layout(d).tile_tokens) == tokens


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
    queued = speed.COMMAND_QUEUE * stages / (speed.LAYER_LAUNCHES * w.n_layers)
    in_flight = min(stages, queued, speed.PIPELINE_CHUNKS)
    assert gain[-1] < in_flight
    assert gain[-1] == pytest.approx(in_flight, rel=0.06)


def test_a_full_command_buffer_keeps_large_models_from_overlapping_stages() -> None:
    one = replace(RATES, layer_overhead_s=0.0, step_overhead_s=0.0, attention_peak_flops=1e30)
    four = replace(one, n_stages=4, hop_overhead_s=0.0, pipelined=True)
    expanded = {"expanded_bytes": 2.0}

    def gain(model: str, **more: float) -> float:
        w = of(model)
        alone = speed.prefill(w, replace(one, **more), 4096.0).weights_s
        return float(alone / speed.prefill(w, replace(four, **more), 4096.0).weights_s)

    assert 2.0 < gain("llama-3.1-8b-instruct", **expanded) < 3.0
    assert 1.0 <= gain("llama-3.3-70b-instruct", **expanded) < gain("llama-3.3-70b-instruct") < 1.6


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


def test_packed_weights_were_expanded_before_products_until_their_own_kernels_came() -> None:
    def found(name: str, year: float = 2026.0, format_class: str = "k4") -> Peaks:
        answer = peaks(device(name), "ggml", "cuda", format_class, year=year)
        assert answer is not None
        return answer

    assert found("rtx 4090", 2024.3).expanded_bytes == 2.0
    assert found("rtx 4090", 2024.3).matrix == found("rtx 4090", 2024.3, "f16").matrix
    assert found("rtx 4090").expanded_bytes == 0.0
    assert found("tesla-v100-sxm2-32gb").expanded_bytes == 2.0  # no INT8 tensor cores
    assert found("tesla-p40", 2024.3).expanded_bytes == found("tesla-p40").expanded_bytes == 0.0  # DP4A
    assert found("tesla-m40-24gb").expanded_bytes == 4.0  # computes in FP32 only
    assert found("rtx 4090", 2024.3, "f16").expanded_bytes == 0.0


@pytest.mark.parametrize("name", ["rtx 4090", "a100-sxm4-80gb", "h100-sxm5-80gb", "rtx 2080 ti"])
def test_vector_units_slow_int8_products_most_where_they_are_few(name: str) -> None:
    card = device(name)
    packed = peaks(card, "ggml", "cuda", "k4", year=2026.0)
    assert packed is not None
    assert card.int8_ops
    assert card.fp32_flops
    assert packed.matrix < min(card.int8_ops, card.fp32_flops / RESCALING)


def test_expanding_costs_prompts_the_wide_weights_and_steps_nothing() -> None:
    w = of("llama-3.1-8b-instruct")
    wide = replace(RATES, expanded_bytes=2.0)
    written = 2.0 * (w.mixer_params + w.dense_params) / RATES.bandwidth_bytes_per_s
    more = speed.prefill(w, wide, 512.0).weights_s - speed.prefill(w, RATES, 512.0).weights_s
    assert more > written
    assert speed.decode_step(w, wide, 8.0, 512.0, 640.0) == speed.decode_step(w, RATES, 8.0, 512.0, 640.0)


def test_what_lies_between_products_weighs_more_in_small_models() -> None:
    passing = replace(RATES, activation_passes=1.0)
    share = {}
    for model in ("llama-3.2-1b-instruct", "llama-3.1-8b-instruct", "llama-3.3-70b-instruct"):
        w = of(model)
        share[model] = speed.prefill(w, passing, 4096.0).total_s / speed.prefill(w, RATES, 4096.0).total_s
        step = speed.decode_step(w, passing, 1.0, 512.0, 640.0).total_s
        assert step == pytest.approx(speed.decode_step(w, RATES, 1.0, 512.0, 640.0).total_s, rel=0.01)
    assert list(share.values()) == sorted(share.values(), reverse=True)
    assert min(share.values()) > 1.0


def test_rows_split_over_devices_leave_experts_and_caches_on_one() -> None:
    one = replace(RATES, hop_overhead_s=0.0)
    four = replace(one, n_tensor=4, gathered=True, link_bytes_per_s=1e30)
    for model in ("llama-3.1-8b-instruct", "mixtral-8x7b-instruct-v0.1"):
        w = of(model)
        alone, shared = (speed.decode_step(w, r, 1.0, 8192.0, 8320.0) for r in (one, four))
        assert shared.weights_s == pytest.approx(alone.weights_s / 4)
        assert shared.cache_s == pytest.approx(alone.cache_s)
        assert shared.experts_s == pytest.approx(alone.experts_s, rel=0.2)  # smaller pieces reach less


def test_a_split_by_rows_is_read_and_priced_as_one() -> None:
    row = dict.fromkeys(READS["speed"], "") | {
        "hardware_canonical": "nvidia-h100-80gb-sxm", "n_devices": "4", "engine": "llama.cpp", "backend": "CUDA",
        "model_canonical": "meta-llama/Meta-Llama-3-8B", "quant": "F16", "date_if_known": "2024",
        "metric": "decode_tps", "notes": "llama-bench -sm row",
    }  # fmt: skip
    for engine, split, gathered in (("llama.cpp", "rows", True), ("vllm", "many", False)):
        asked = row_speed.ask(row | {"engine": engine})
        assert not isinstance(asked, Refusal)
        d = asked.deployment
        assert d.placement.tensor_parallel == 4
        assert layout(d).gathered == gathered
        assert situation(d, d.machine.devices[0]).split == split


def test_engines_that_run_llama_cpp_share_its_effects() -> None:
    here = Situation("llama.cpp", "ggml", "cuda", "ada", "geforce-rtx-4090")
    held = load()
    for engine in ("llamafile", "ollama", "koboldcpp"):
        other = replace(here, engine=engine)
        for name, values in evaluate(held, here, CLASSES).items():
            assert np.array_equal(values, evaluate(held, other, CLASSES)[name])


@pytest.mark.parametrize(("name", "backend", "year"), [
    ("rtx 4090", "cuda", 2024.3), ("rtx 4090", "cuda", 2026.0), ("tesla-v100-sxm2-32gb", "cuda", 2026.0),
    ("radeon-ai-pro-r9700", "rocm", 2025.5), ("arc-pro-b70-32gb", "sycl", 2026.0),
])  # fmt: skip
def test_rows_and_tables_read_the_same_effects(name: str, backend: str, year: float) -> None:
    card = device(name)
    d = Deployment(
        models.load().resolve("llama-3.1-8b-instruct"), schemes.get("Q4_K_M"), Machine("x", (card,)), "llama.cpp",
        cast("Backend", backend), Placement(), Workload(prompt_tokens=2048, output_tokens=1), Settings(year=year),
    )  # fmt: skip
    rows, _ = observation_rows([Observation(d, "prefill_tps", 1.0, "a")])
    labels_of = {name: values[0] for name, values in measurements.features(rows).items()}
    held = load()
    table = {"base": {"*": 0.0}, "terms": [
        {"by": ["backend", feature], "per_year": False, "effects": {f"{backend}|{labels_of[feature]}": 0.5}}
        for feature in ("product", "multiplied", "library", "format", "packed")
    ]}  # fmt: skip
    known = replace(held, latents=held.latents | {"compute": table}, evaluated={})
    one = side(known, d.engine, backend, situation(d, card), card, None)
    at = CLASSES.index("k4")
    row = calibration.row_latents({"compute": table}, rows)["compute"][0]
    assert one.latents["compute"][at, 0, 0, 0] == pytest.approx(1.0 / (1.0 + np.exp(-row)))
