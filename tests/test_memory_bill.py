"""Laws of the memory bill, for one deployment and for tables."""

from __future__ import annotations

import csv
import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from estimators import engine_memory
from estimators.deployment import Deployment, Placement, Settings, Workload
from estimators.memory import (
    bill,
    kv_capacity_tokens,
    max_context,
    max_sequences,
    table_memory,
    visible_bytes,
)
from estimators.memory_rows import observed_bytes
from estimators.table import DeploymentTable
from estimators.walk import Walk, load_table, walk
from hwdb import catalogue as hardware
from hwdb.device import Machine
from modeldb import catalogue, schemes

GIB = 1 << 30
ENGINES = (
    ("llama.cpp", "Q4_K_M", "cuda"), ("ollama", "Q4_K_M", "cuda"), ("vllm", "AWQ", "cuda"), 
    ("sglang", "FP8", "cuda"),
    ("trt-llm", "FP8", "cuda"), ("transformers", "BF16", "cuda"), ("lmdeploy", "AWQ", "cuda"), 
    ("tgi", "BF16", "cuda"),
    ("exllamav2", "EXL2-4.0bpw", "cuda"), ("mlx", "MLX-4bit", "metal"), ("ktransformers", "Q4_K_M", "cuda"),
)  # fmt: skip


def machine(*names: str) -> Machine:
    devices = tuple(hardware.load().resolve(name) for name in names)
    return Machine("test", devices, host_memory_bytes=128 * GIB)


def deployment(
    model="qwen3-8b", scheme="Q4_K_M", engine="llama.cpp", backend="cuda", gpus=("rtx 4090",), **settings
):
    return Deployment(
        catalogue.load().resolve(model), schemes.get(scheme), machine(*gpus), engine, backend,
        settings=Settings(**settings),
    )  # fmt: skip


def total(d: Deployment) -> float:
    return sum(device.total().best for device in bill(d).devices)


@pytest.fixture(params=ENGINES, ids=lambda e: e[0])
def any_engine(request):
    engine, scheme, backend = request.param
    known = scheme if scheme in schemes.SCHEMES else ("BF16" if engine != "mlx" else "MLX-4bit")
    gpus = ("m4 max 128gb",) if backend == "metal" else ("rtx 4090",)
    return lambda **settings: deployment("qwen3-8b", known, engine, backend, gpus, **settings)


def test_lines_sum_to_totals_and_carry_a_source(any_engine):
    for device in bill(any_engine(context_tokens=8192)).devices:
        assert device.total().best == pytest.approx(sum(line.size.best for line in device.lines))
        for line in device.lines:
            assert 0 <= line.size.low <= line.size.best <= line.size.high
            assert line.source
            assert line.name


def test_longer_context_and_more_users_never_shrink_a_bill(any_engine):
    sizes = [total(any_engine(context_tokens=n)) for n in (256, 512, 1000, 4096, 4097, 20000, 65536)]
    assert sizes == sorted(sizes)
    users = [
        total(any_engine(context_tokens=4096).with_(workload=Workload(n_sequences=n))) for n in (1, 2, 4, 16)
    ]
    assert users == sorted(users)


def test_a_smaller_cache_type_never_costs_more():
    sizes = [
        total(deployment(kv_type_k=t, kv_type_v=t, context_tokens=32768))
        for t in ("q4_0", "q8_0", "f16", "f32")
    ]
    assert sizes == sorted(sizes)


def test_more_layers_on_the_gpu_never_shrink_it_and_weights_are_conserved():
    d = deployment(context_tokens=8192)
    bills = [bill(replace(d, placement=Placement(n_gpu_layers=n))) for n in (0, 1, 12, 35, 36, 37)]
    on_gpu = [b.devices[0].total().best for b in bills]
    assert on_gpu == sorted(on_gpu)
    weights = [sum(x.size.best for dev in b.devices for x in dev.lines if x.kind == "weights") for b in bills]
    assert max(weights) == pytest.approx(min(weights))  # an untied model: nothing is stored twice


def test_experts_move_between_host_and_gpu_without_loss():
    d = deployment("qwen3-30b-a3b", context_tokens=8192)
    for n in (0, 1, 24, 48):
        b = bill(replace(d, placement=Placement(n_cpu_expert_layers=n)))
        experts = sum(x.size.best for dev in b.devices for x in dev.lines if "experts" in x.name)
        assert experts == pytest.approx(walk(d.model, d.scheme).expert_bytes)


def test_permuting_equal_devices_changes_nothing_and_larger_ones_take_more():
    d = deployment(gpus=("rtx 3090", "rtx 3090"), context_tokens=8192)
    d = replace(d, placement=Placement(pipeline_parallel=2))
    swapped = replace(d, machine=replace(d.machine, devices=d.machine.devices[::-1]))
    assert bill(d) == bill(swapped)
    unequal = replace(
        deployment(gpus=("rtx 3060 12gb", "rtx 3090")), placement=Placement(pipeline_parallel=2)
    )
    small, large = (dev.total().best for dev in bill(unequal).devices[:2])
    assert small < large


def test_tensor_parallel_ranks_hold_equal_shares_and_never_split_a_head():
    d = deployment("qwen3-8b", "BF16", "vllm", gpus=("h100 sxm",) * 4)
    parts = bill(replace(d, placement=Placement(tensor_parallel=4))).devices
    assert len(parts) == 4
    assert len({dev.total().best for dev in parts}) == 1
    one_head = deployment("gemma-2b", "BF16", "vllm", gpus=("h100 sxm",) * 4, context_tokens=8192)
    cache = [
        x.size.best
        for n in (1, 4)
        for x in bill(replace(one_head, placement=Placement(tensor_parallel=n))).devices[0].lines
        if x.kind == "cache"
    ]
    assert cache[0] == cache[1]  # multi-query attention: every rank keeps the one head


def test_more_free_memory_never_removes_a_fit():
    d = deployment(context_tokens=32768)
    fits = [
        bill(replace(d, machine=replace(d.machine, free_bytes=(n * GIB,)))).fits() for n in range(4, 24, 2)
    ]
    assert fits == sorted(fits)
    assert fits[-1]
    assert not fits[0]


def test_pool_engines_hold_fewer_tokens_when_their_fraction_is_smaller():
    d = [
        deployment("qwen3-8b", "BF16", e, memory_fraction=f)
        for e in ("vllm", "sglang", "trt-llm")
        for f in (0.8, 0.9)
    ]
    tokens = [kv_capacity_tokens(x) for x in d]
    assert tokens[0] < tokens[1]
    assert tokens[2] < tokens[3]
    assert tokens[4] < tokens[5]


def test_vllm_cache_blocks_of_a_published_trace_are_met():
    # LLMServingSim's RTX 4090 run: 2,588 blocks of 16 at 0.9 of 25,250,627,584 bytes, 2,048 batched tokens
    d = deployment("llama-3.1-8b", "BF16", "vllm", memory_fraction=0.9, batch_tokens=2048)
    assert visible_bytes(d.machine.devices[0]) == pytest.approx(25_250_627_584, rel=0.01)
    assert kv_capacity_tokens(d) == pytest.approx(2588 * 16, rel=0.03)


def test_tensorrt_llm_capacity_meets_measured_boundaries():
    path = Path(__file__).parent / "data/memory/trtllm_kv_boundary.csv"
    names = {"Qwen/Qwen3-32B-FP8": "qwen3-32b", "meta-llama/Meta-Llama-3.1-8B": "llama-3.1-8b"}
    gpus = {"h100_sxm": "h100 sxm", "gb300": "gb300"}
    errors = []
    for row in csv.DictReader(path.read_text().splitlines()):
        tp, each = int(row["tp"]), int(row["isl"]) + int(row["osl"])
        d = deployment(
            names[row["model"]], "FP8" if "FP8" in row["model"] else "BF16", "trt-llm", "cuda",
            (gpus[row["system"]],) * tp, memory_fraction=float(row["free_gpu_fraction"]),
        )  # fmt: skip
        d = replace(d, placement=Placement(tensor_parallel=tp))
        errors.append(abs(max_sequences(d, each) / (int(row["max_batch_measured"]) + 0.5) - 1))
    assert np.median(errors) < 0.02
    assert max(errors) < 0.06


def stacked(walks: list[Walk]) -> Walk:
    return Walk(**{f.name: np.array([float(getattr(w, f.name)) for w in walks]) for f in fields(Walk)})


MODELS = (
    "qwen3-8b",
    "llama-3.1-8b",
    "gemma-3-12b-it",
    "qwen3-30b-a3b",
    "phi-4",
    "mistral-7b-v0.1",
    "qwen2.5-3b-instruct",
)


@pytest.mark.parametrize(
    ("engine", "scheme"), [("llama.cpp", "Q4_K_M"), ("vllm", "BF16"), ("transformers", "BF16")]
)
def test_a_table_and_a_bill_price_the_same(engine, scheme):
    m = machine("rtx 4090")
    found = [catalogue.load().resolve(name) for name in MODELS]
    walks = [walk(x, schemes.get(scheme)) for x in found]
    contexts = np.array([4096, 8192, 16384, 4096, 2048, 32768, 8192])
    table = DeploymentTable(m, engine, "cuda", stacked(walks), 0, context_tokens=contexts)
    priced = table_memory(table)
    for i, x in enumerate(found):
        d = Deployment(
            x, schemes.get(scheme), m, engine, "cuda", settings=Settings(context_tokens=int(contexts[i]))
        )
        b = bill(d)
        assert priced.device_bytes[i] == pytest.approx(b.devices[0].total().best, rel=0.01)
        assert bool(priced.fits[i]) == b.fits()


def test_a_table_and_a_bill_agree_over_the_catalogue():
    # every third compiled model, with those whose windows llama.cpp ignores or whose latents it expands
    compiled = load_table()
    known = [x for x in catalogue.load().models if (x.id, "Q4_K_M") in compiled.position]
    odd = [x for x in known if np.any(compiled.take([compiled.index(x.id, "Q4_K_M")]).expanded_k > 0)]
    chosen = [*known[::3], *odd, *(catalogue.load().resolve(n) for n in ("mistral-7b-v0.1", "starcoder2-3b"))]
    m, scheme = machine("rtx 4090"), schemes.get("Q4_K_M")
    contexts = np.array([min(x.max_context or 4096, 16384) for x in chosen])
    walks = compiled.take(np.array([compiled.index(x.id, "Q4_K_M") for x in chosen]))
    priced = table_memory(DeploymentTable(m, "llama.cpp", "cuda", walks, 0, context_tokens=contexts))
    for i, x in enumerate(chosen):
        d = Deployment(x, scheme, m, "llama.cpp", "cuda", settings=Settings(context_tokens=int(contexts[i])))
        assert priced.device_bytes[i] == pytest.approx(bill(d).devices[0].total().best, rel=0.03), x.id
    assert odd


def test_max_context_is_the_last_that_fits():
    walks = stacked([walk(catalogue.load().resolve(name), schemes.get("Q4_K_M")) for name in MODELS])
    table = DeploymentTable(machine("rtx 3060 12gb"), "llama.cpp", "cuda", walks, 0)
    best = max_context(table)
    possible = best > 0
    assert possible.any()
    assert table_memory(replace(table, context_tokens=np.maximum(best, 256))).fits[possible].all()
    beyond = table_memory(replace(table, context_tokens=best + 256)).fits
    assert not beyond[best < 1 << 20].any()


def test_mixed_parallelism_in_one_table_equals_separate_tables():
    walks = stacked([walk(catalogue.load().resolve("qwen3-8b"), schemes.get("BF16"))] * 2)
    m = machine("h100 sxm", "h100 sxm")
    both = table_memory(DeploymentTable(m, "vllm", "cuda", walks, 0, tensor_parallel=np.array([1, 2])))
    for i, n in enumerate((1, 2)):
        one = table_memory(DeploymentTable(m, "vllm", "cuda", walks.take([i]), 0, tensor_parallel=n))
        assert both.device_bytes[i] == one.device_bytes[0]


def test_seed_table_qwen_on_a100_is_met():
    # Qwen-1 README: GB while generating 2,048 tokens, Transformers on an A100
    for model, scheme, gb in (
        ("Qwen/Qwen-1_8B", "BF16", 4.23),
        ("Qwen/Qwen-7B", "BF16", 16.99),
        ("Qwen/Qwen-14B", "BF16", 30.15),
    ):
        d = deployment(
            model, scheme, "transformers", gpus=("a100 sxm 80gb",), context_tokens=2048, year=2023.75
        )
        d = replace(d, workload=Workload(prompt_tokens=1, output_tokens=2047))
        assert observed_bytes(d, "gpu_mem_gb").best / GIB == pytest.approx(gb, rel=0.05)


def test_observed_figures_agree_with_the_bill():
    d = deployment(context_tokens=16384, kv_type_k="q8_0", kv_type_v="q8_0")
    lines = [x for dev in bill(d).devices for x in dev.lines]
    assert observed_bytes(d, "kv_gib").best == sum(x.size.best for x in lines if x.kind == "cache")
    assert observed_bytes(d, "compute_buffer_gib").best == sum(
        x.size.best for x in lines if x.kind == "compute"
    )
    with pytest.raises(ValueError, match="not a figure of memory"):
        observed_bytes(d, "watts")


def test_compiled_constants_equal_their_source():
    compiled = json.loads((engine_memory.DATA / "engine_memory.json").read_text())
    assert compiled == engine_memory.compile_constants()
