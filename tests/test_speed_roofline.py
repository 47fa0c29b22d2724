"""Laws of the roofline: floors hold, more work never takes less time, and tables price like single
deployments."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest

from estimators import memory, speed
from estimators.deployed_walk import as_run, known_walk
from estimators.deployment import Deployment, Placement, Settings, Workload
from estimators.errors import CannotPrice
from estimators.estimate import estimate, price, speed_of, table_of
from estimators.formats import CLASSES, class_index, run_as
from estimators.observation import n_sequences
from estimators.phases import portion
from estimators.table import BOTTLENECKS, DeploymentTable
from estimators.walk import Walk, load_table, walk
from hwdb import catalogue as devices
from hwdb.device import Machine
from modeldb import catalogue as models
from modeldb import schemes
from modeldb.gguf_model import family_of, file_scheme


def machine(*names: str, host: str = "amd-ryzen-9-7950x") -> Machine:
    known = devices.load()
    return Machine("test", tuple(known.resolve(n) for n in names), known.resolve(host), 64 << 30)


def deployment(
    model: str = "llama-3.1-8b-instruct",
    scheme: str = "Q4_K_M",
    gpu: str = "rtx 4090",
    engine: str = "llama.cpp",
    backend: str = "cuda",
    **rest: object,
) -> Deployment:
    on = machine(gpu) if backend != "cpu" else replace(machine(), devices=())
    return Deployment(
        models.load().resolve(model),
        schemes.get(scheme),
        on,
        engine,
        backend,
        **rest,  # type: ignore[arg-type]
    )


def decode_s(d: Deployment) -> float:
    return float(np.squeeze(speed_of(d).decode.total_s))


def prefill_s(d: Deployment) -> float:
    return float(np.squeeze(speed_of(d).prefill.total_s))


CASES = [
    ("llama-3.1-8b-instruct", "Q4_K_M", "rtx 4090", "llama.cpp", "cuda"),
    ("llama-3.1-8b-instruct", "bf16", "h100-sxm5-80gb", "vllm", "cuda"),
    ("qwen3-30b-a3b", "Q4_K_M", "strix halo", "llama.cpp", "vulkan"),
    ("qwen3-0.6b", "Q8_0", "apple-m2-ultra-76-core-gpu", "llama.cpp", "metal"),
    ("gemma-3-27b-it", "Q4_K_M", "rx 7900 xtx", "llama.cpp", "rocm"),
    ("deepseek-v3", "fp8-block128x128", "h200-sxm-141gb", "sglang", "cuda"),
    ("qwen3-8b", "Q4_K_M", "", "llama.cpp", "cpu"),
    ("qwen3-8b", "bf16", "a100-sxm4-80gb", "transformers", "cuda"),
]


@pytest.mark.parametrize("case", CASES)
def test_no_decode_step_beats_the_bytes_over_the_bandwidth(case: tuple[str, str, str, str, str]) -> None:
    d = deployment(*case)
    device = d.machine.devices[0] if d.machine.devices else d.machine.host
    assert device is not None
    assert device.bandwidth_bytes_per_s
    w = walk(d.model, d.scheme)
    read = w.mixer_bytes + w.dense_bytes + w.shared_bytes + w.other_bytes + w.head_bytes
    read += w.expert_bytes * w.experts_per_token / max(w.n_experts, 1)
    assert decode_s(d) >= read / device.bandwidth_bytes_per_s


@pytest.mark.parametrize("case", CASES)
def test_no_prefill_beats_the_peak(case: tuple[str, str, str, str, str]) -> None:
    d = deployment(*case, workload=Workload(prompt_tokens=2048))
    w = walk(d.model, d.scheme)
    flops = 2 * (w.active_params - w.head_params) * 2048
    found = speed_of(d)
    assert prefill_s(d) >= flops / found.plan.main.matrix[class_index(d.scheme)]


@pytest.mark.parametrize("case", [*CASES, ("qwen3-30b-a3b", "F16", "rtx 3090", "llama.cpp", "cuda")])
def test_an_estimate_is_above_its_floors_and_is_the_sum_of_its_terms(
    case: tuple[str, str, str, str, str],
) -> None:
    found = estimate(deployment(*case, workload=Workload(prompt_tokens=300)))
    assert 0 < found.floor_tpot_s < found.tpot_s.best
    assert 0 < found.floor_ttft_s < found.ttft_s.best
    assert sum(t.seconds for t in found.decode_terms) == pytest.approx(found.tpot_s.best)
    assert found.tpot_s.low < found.tpot_s.best < found.tpot_s.high
    assert found.decode_tokens_per_s.best == pytest.approx(1 / found.tpot_s.best)


@pytest.mark.parametrize("case", CASES)
def test_ttft_never_falls_with_the_prompt(case: tuple[str, str, str, str, str]) -> None:
    lengths = (1, 2, 100, 511, 512, 513, 1024, 2047, 2048, 2049, 4096, 8191, 8192, 8193, 30000)
    times = [prefill_s(deployment(*case, workload=Workload(prompt_tokens=n))) for n in lengths]
    assert times == sorted(times)


@pytest.mark.parametrize("case", CASES)
def test_a_step_never_gets_faster_with_context_or_batch(case: tuple[str, str, str, str, str]) -> None:
    by_context = [
        decode_s(deployment(*case, workload=Workload(prompt_tokens=n))) for n in (1, 500, 1025, 5000, 60000)
    ]
    by_batch = [
        decode_s(deployment(*case, workload=Workload(n_sequences=n))) for n in (1, 2, 3, 8, 31, 64, 500)
    ]
    assert by_context == sorted(by_context)
    assert by_batch == sorted(by_batch)


def test_a_window_never_costs_more_than_no_window() -> None:
    w = walk(models.load().resolve("gemma-3-27b-it"), schemes.get("Q8_0"))
    rates = speed.Rates(1e12, 1e14, 1e13, 1e14)
    near = speed.decode_step(w, rates, 1, 9000, 9100).total_s
    far = speed.decode_step(replace(w, window_tokens=1e9), rates, 1, 9000, 9100).total_s
    assert near < far


@pytest.mark.parametrize(
    ("start", "stop", "window"), [(0, 10, 4), (0, 10, 100), (50, 60, 20), (7, 7, 9), (3, 9, 5), (0, 1, 1)]
)
def test_the_mean_visible_context_is_the_mean_of_the_steps(start: int, stop: int, window: int) -> None:
    fine = np.linspace(start, stop, 20001)
    assert float(speed.mean_visible(start, stop, window)) == pytest.approx(
        float(np.minimum(fine, window).mean()), rel=1e-3
    )


def test_experts_touched_follow_independent_routing() -> None:
    w = walk(models.load().resolve("qwen3-30b-a3b"), schemes.get("Q8_0"))
    share = float(w.experts_per_token / w.n_experts)
    assert float(speed.touched_share(w, 1)) == pytest.approx(share)
    assert float(speed.touched_share(w, 16)) == pytest.approx(1 - (1 - share) ** 16)
    dense = walk(models.load().resolve("qwen3-8b"), schemes.get("Q8_0"))
    assert float(speed.touched_share(dense, 16)) == 0


def test_the_soft_maximum_is_never_below_either_side() -> None:
    a, b = np.meshgrid(np.geomspace(1e-6, 1, 30), np.geomspace(1e-6, 1, 30))
    high = speed.soft_max(a, b)
    assert np.all(high >= np.maximum(a, b) * (1 - 1e-12))
    assert np.all(high <= np.maximum(a, b) * 2**0.25 * (1 + 1e-12))


def test_fewer_layers_on_the_gpu_are_never_faster() -> None:
    times = [decode_s(deployment(placement=Placement(n_gpu_layers=n))) for n in (33, 32, 24, 16, 8, 0)]
    assert times == sorted(times)
    assert times[0] == pytest.approx(decode_s(deployment()))


def test_experts_on_the_host_cost_time() -> None:
    times = [
        decode_s(deployment("qwen3-30b-a3b", placement=Placement(n_cpu_expert_layers=n)))
        for n in (0, 12, 24, 48)
    ]
    assert times == sorted(times)
    assert times[-1] > 1.5 * times[0]


def test_a_device_without_bandwidth_is_refused() -> None:
    d = deployment()
    blank = replace(d.machine.devices[0], bandwidth_bytes_per_s=None)
    with pytest.raises(CannotPrice, match="bandwidth"):
        speed_of(d.with_(machine=Machine("x", (blank,), d.machine.host)))


def test_tensor_parallel_is_faster_but_less_than_linear() -> None:
    d = deployment("llama-3.3-70b-instruct", "fp8-per-tensor", "h100-sxm5-80gb", "vllm")
    gpus = d.machine.devices * 4
    four = d.with_(machine=Machine("x", gpus, d.machine.host), placement=Placement(tensor_parallel=4))
    assert decode_s(d) / 4 < decode_s(four) < decode_s(d)


def _table(n: int, **rest: object) -> DeploymentTable:
    found = load_table()
    rng = np.random.default_rng(0)
    gguf = [i for (m, s), i in found.position.items() if s in ("Q4_K_M", "Q8_0", "F16")]
    rows = rng.choice(gguf, n)
    by_row = {i: pair for pair, i in found.position.items()}
    kinds = np.array([class_index(schemes.get(by_row[i][1])) for i in rows])
    return DeploymentTable(
        machine("rtx 4090"), "llama.cpp", "cuda", found.take(rows), kinds,
        context_tokens=rng.integers(512, 9000, n), kv_k_bytes=rng.choice([2.0, 34 / 32], n),
        kv_v_bytes=2.0, **rest,  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_table_prices_rows_independently_of_their_neighbours() -> None:
    table = _table(9000)
    whole = price(table)
    part = DeploymentTable(
        **{
            f.name: getattr(table, f.name)
            for f in fields(DeploymentTable)
            if f.name not in ("walk", "format_class", "context_tokens", "kv_k_bytes")
        },
        walk=table.walk.take(slice(4090, 4110)),
        format_class=table.format_class[4090:4110],
        context_tokens=table.context_tokens[4090:4110],
        kv_k_bytes=table.kv_k_bytes[4090:4110],
    )
    alone = price(part)
    for f in fields(alone):
        np.testing.assert_array_equal(getattr(alone, f.name), getattr(whole, f.name)[4090:4110])


def test_one_deployment_and_a_table_agree() -> None:
    for case in CASES[:5]:
        d = deployment(*case, settings=Settings(context_tokens=2048))
        found, row = speed_of(d), price(table_of(d))
        assert float(row.tpot_s[0]) == pytest.approx(float(np.squeeze(found.decode.total_s)))
        assert float(row.ttft_s[0]) == pytest.approx(
            float(np.squeeze(found.prefill.total_s)) + found.request_s
        )


def test_intervals_contain_their_best() -> None:
    found = price(_table(500))
    assert np.all((found.tpot_low_s < found.tpot_s) & (found.tpot_s < found.tpot_high_s))
    assert np.all((found.ttft_low_s < found.ttft_s) & (found.ttft_s < found.ttft_high_s))
    assert np.all(found.decode_low_tokens_per_s < found.decode_high_tokens_per_s)
    assert set(np.unique(found.bottleneck)) <= set(range(len(BOTTLENECKS)))


def test_every_number_of_a_table_is_finite_and_positive() -> None:
    for layers in (-1, 5):
        found = price(_table(3000, n_gpu_layers=layers))
        for name in ("ttft_s", "tpot_s", "prefill_tokens_per_s", "decode_tokens_per_s", "device_bytes"):
            values = getattr(found, name)
            assert np.all(np.isfinite(values) & (values > 0)), name


def test_every_scheme_has_a_class() -> None:
    for scheme in schemes.SCHEMES.values():
        assert 0 <= class_index(scheme) < len(CLASSES)
    assert CLASSES[class_index(schemes.get("Q4_K_M"))] == "k4"
    assert CLASSES[class_index(schemes.get("IQ3_XXS"))] == "iq3"
    assert CLASSES[class_index(schemes.get("BF16"))] == "bf16"
    assert CLASSES[class_index(schemes.get("bf16"))] == "f16"


@pytest.mark.parametrize(
    ("label", "dominant", "bits", "expected"),
    [
        ("Q4_0", "Q4_0", 4.94, "q4_0"), ("Q4_1", "Q4_1", 5.3, "q4_0"), ("Q5_1", "Q5_1", 6.1, "q5_1"),
        ("Q4_K", "Q4_K", 5.18, "k4"), ("Q3_K_M", "Q3_K", 4.1, "k3"), ("IQ4_XS", "IQ4_XS", 4.8, "iq4"),
        ("Q8_0", "Q8_0", 8.5, "q8"), ("Q4_K_M", "Q5_0", 6.2, "q5_0"), ("TQ2_0", "TQ2_0", 2.9, "ternary"),
    ],
)  # fmt: skip
def test_a_file_is_of_the_class_that_most_of_its_weights_have(
    label: str, dominant: str, bits: float, expected: str
) -> None:
    held = file_scheme("gguf", label, family_of(dominant), bits, "a header")
    assert CLASSES[class_index(held)] == expected


@pytest.mark.parametrize(
    ("model", "label", "expected"),
    [
        ("qwen2.5-0.5b-instruct", "Q4_K_M", "q5_0"),
        ("qwen2.5-0.5b-instruct", "Q5_K_M", "q5_1"),
        ("qwen3-8b", "Q4_K_M", "k4"),
    ],
)
def test_models_too_narrow_for_blocks_of_256_are_of_the_class_their_files_fall_back_to(
    model: str, label: str, expected: str
) -> None:
    found, scheme = models.load().get(model), schemes.get(label)
    assert CLASSES[class_index(scheme, found.hidden_size)] == expected
    stored = Counter(
        f.id for t, f in schemes.assign(scheme, found) if t.name.startswith("blk.") and len(t.shape) > 1
    )
    assert stored.most_common(1)[0][0] == {"q5_0": "Q5_0", "q5_1": "Q5_1", "k4": "Q4_K"}[expected]


def test_a_walk_of_arrays_prices_like_its_rows() -> None:
    found = load_table()
    rates = speed.Rates(1e12, 1e14, 1e13, 1e14, chunk_tokens=512)
    rows = found.take(np.arange(0, 4000, 97))
    together = speed.decode_step(rows, rates, 3, 100, 200).total_s
    for i, index in enumerate(range(0, 4000, 97)):
        assert float(together[i]) == pytest.approx(
            float(speed.decode_step(found.walk.row(index), rates, 3, 100, 200).total_s)
        )
    assert all(getattr(rows, f.name).shape == together.shape for f in fields(Walk))


def test_a_group_of_query_heads_reads_its_cache_again_as_far_as_its_kernels_do() -> None:
    # 4 query heads to a key head
    w = walk(models.load().resolve("llama-3.1-8b-instruct"), schemes.get("bf16"))
    latent = walk(models.load().resolve("deepseek-v3"), schemes.get("fp8-block128x128"))
    cost, latents = {}, {}
    for share in (0.0, 0.5, 1.0):
        rates = speed.Rates(3e12, 9e14, 6e13, 9e14, reread_share=share)
        cost[share] = speed.decode_step(w, rates, 16, 8000, 8001).cache_s
        latents[share] = speed.decode_step(latent, rates, 16, 8000, 8001).cache_s
    read = (w.kv_k_full + w.kv_v_full) * 2 * 8000.5 * 16 / (3e12 * 0.6)
    assert cost[0.0] == pytest.approx(read, rel=0.01)
    assert cost[1.0] == pytest.approx(4 * read, rel=0.01)
    assert cost[0.0] < cost[0.5] < cost[1.0]
    assert latents[1.0] == latents[0.0]


def test_one_decoded_token_attends_at_its_own_share_and_a_prompt_does_not() -> None:
    w = walk(models.load().resolve("llama-3.1-8b-instruct"), schemes.get("bf16"))
    like, apart = (speed.Rates(1e15, 9e14, 6e13, 1e12, decoding_share=share) for share in (1.0, 0.25))
    steps = [speed.decode_step(w, rates, 1, 8000, 8001) for rates in (like, apart)]
    assert steps[1].cache_s == pytest.approx(4 * steps[0].cache_s, rel=1e-3)  # arithmetic bounds it
    assert steps[1].weights_s == steps[0].weights_s
    assert speed.prefill(w, apart, 512).total_s == speed.prefill(w, like, 512).total_s


def test_small_experts_reach_less_of_both_peaks_and_dense_layers_do_not_change() -> None:
    small = walk(models.load().resolve("qwen3-30b-a3b"), schemes.get("bf16"))
    large = walk(models.load().resolve("mixtral-8x7b-instruct-v0.1"), schemes.get("bf16"))
    whole, half = (speed.Rates(3e12, 9e14, 6e13, 9e14, expert_half_params=h) for h in (0.0, 5e6))
    for tokens in (1, 8192):
        slower = [
            speed.prefill(w, half, tokens).experts_s / speed.prefill(w, whole, tokens).experts_s
            for w in (small, large)
        ]
        assert 1 < slower[1] < slower[0]
    for share in (1.0, 0.25):  # the part of a model on one side has experts of the same size
        part = portion(small, 1.0, share, 1.0)
        assert float(speed._expert_reach(part, half)) == pytest.approx(
            float(speed._expert_reach(small, half))
        )
    dense = walk(models.load().resolve("qwen3-8b"), schemes.get("bf16"))
    assert speed.prefill(dense, half, 512).total_s == speed.prefill(dense, whole, 512).total_s


def test_each_further_sequence_costs_the_scheduler_its_time() -> None:
    w = walk(models.load().resolve("qwen3-8b"), schemes.get("bf16"))
    free, paid = (speed.Rates(3e12, 9e14, 6e13, 9e14, sequence_overhead_s=s) for s in (0.0, 5e-5))
    for n in (1, 64):
        more = (
            speed.decode_step(w, paid, n, 100, 200).total_s - speed.decode_step(w, free, n, 100, 200).total_s
        )
        assert float(more) == pytest.approx(n * 5e-5)


def test_a_device_without_units_for_a_format_runs_its_weights_expanded() -> None:
    known = devices.load()
    ampere, hopper = known.resolve("a100-sxm4-80gb"), known.resolve("h100-sxm5-80gb")
    assert (run_as("fp8", ampere), run_as("nvfp4", ampere)) == ("gptq8", "gptq4")
    assert (run_as("fp8", hopper), run_as("f16", ampere)) == ("fp8", "f16")


def test_tensorrt_llm_saw_everything_before_it_read_windows_from_the_model() -> None:
    old, new = (
        deployment("mistral-7b-v0.1", "bf16", "h100-sxm5-80gb", "trt-llm", settings=Settings(year=year))
        for year in (2024.9, 2025.9)
    )
    whole, near = (
        as_run(known_walk(old.model, old.scheme), old),
        as_run(known_walk(new.model, new.scheme), new),
    )
    assert near.window_tokens == 4096
    assert near.kv_k_full == 0
    assert whole.window_tokens == 0
    assert whole.kv_k_full == near.kv_k_window
    assert whole.attention_flops_full == whole.decode_attention_flops == near.attention_flops_window


def test_a_queue_fills_the_cache_that_the_engine_leaves() -> None:
    work = Workload(prompt_tokens=2048, output_tokens=2048, n_sequences=1000, client="burst")
    d = deployment("llama-3.1-8b-instruct", "bf16", "a100-sxm4-80gb", "trt-llm", workload=work)
    w = known_walk(d.model, d.scheme)
    running = n_sequences(d, w, d.machine.devices[0])
    room = memory.kv_capacity_tokens(d)
    assert running == pytest.approx(room / 4096, abs=1)
    half = d.with_(settings=Settings(memory_fraction=0.45))
    assert n_sequences(half, w, d.machine.devices[0]) == pytest.approx(running / 2, abs=1)
