"""Which units other engines than llama.cpp use, and which of them have weights to unpack first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from estimators import observation, speed
from estimators.deployment import Deployment, Settings, Workload
from estimators.design import design
from estimators.estimate import speed_of
from estimators.formats import run_as
from estimators.peaks import NOTHING_TO_UNPACK, peaks
from estimators.traits import traits
from estimators.walk import walk
from hwdb import catalogue as devices
from hwdb.device import Machine
from modeldb import catalogue as models
from modeldb import schemes

B200, H100, A100 = "b200-sxm-180gb", "h100-sxm5-80gb", "a100-sxm4-80gb"


@pytest.mark.parametrize(
    ("device", "name", "rate"),
    [
        (B200, "nvfp4", "fp4_flops"),
        (B200, "fp8", "fp8_flops"),
        (B200, "mxfp4", "fp8_flops"),  # 4-bit weights, 8-bit activations
        (B200, "f16", "fp16_tensor_flops"),
        (H100, "fp8", "fp8_flops"),
        (H100, "mxfp4", "fp16_tensor_flops"),
        (A100, "gptq4", "fp16_tensor_flops"),
    ],
)
def test_serving_engines_multiply_on_the_units_of_the_format(device: str, name: str, rate: str) -> None:
    card = devices.load().resolve(device)
    found = peaks(card, "graph", "cuda", name)
    assert found is not None
    assert found.vector == NOTHING_TO_UNPACK
    assert 0.5 * getattr(card, rate) < found.matrix <= getattr(card, rate)


def test_mxfp4_takes_the_kernels_of_fp8_where_they_exist_and_the_engine_serves() -> None:
    blackwell, hopper = (devices.load().resolve(x) for x in (B200, H100))
    assert run_as("mxfp4", blackwell, "graph") == "fp8"
    assert run_as("mxfp4", hopper, "graph") == "mxfp4"
    assert run_as("mxfp4", blackwell, "ggml") == "mxfp4"


@pytest.mark.parametrize(
    ("name", "free"), [("f16", True), ("fp8", True), ("int8", True), ("awq", False), ("nf4", False)]
)
def test_eager_engines_unpack_what_no_unit_multiplies(name: str, free: bool) -> None:
    found = peaks(devices.load().resolve(H100), "eager", "cuda", name)
    assert found is not None
    assert (found.vector == NOTHING_TO_UNPACK) is free


def served(scheme: str, batch: int) -> float:
    """Output tokens per second of Llama 3.3 70B under TensorRT-LLM on one B200."""
    d = Deployment(
        models.load().resolve("llama-3.3-70b-instruct"), schemes.get(scheme),
        Machine("x", (devices.load().resolve(B200),)), "trt-llm", "cuda",
        workload=Workload(prompt_tokens=128, output_tokens=512, n_sequences=batch),
        settings=Settings(kv_type_k="fp8", kv_type_v="fp8", year=2025.7),
    )  # fmt: skip
    return speed_of(d).metric("output_throughput_tps", d.workload)


@pytest.mark.parametrize("batch", [1, 64, 512])
def test_fewer_bits_are_faster_where_units_multiply_them(batch: int) -> None:
    four, eight, sixteen = (served(s, batch) for s in ("nvfp4-hf", "fp8-per-tensor", "bf16"))
    assert four > eight > sixteen


def test_the_effects_of_unpacking_rest_on_rows_that_unpack() -> None:
    found = []
    for scheme in ("fp8-per-tensor", "awq-4bit-g128"):
        for model in ("llama-3.1-8b-instruct", "qwen3-14b"):
            for batch in (1, 4, 16, 64, 256):
                d = Deployment(
                    models.load().resolve(model), schemes.get(scheme),
                    Machine("x", (devices.load().resolve(H100),)), "transformers", "cuda",
                    workload=Workload(prompt_tokens=128, output_tokens=128, n_sequences=batch),
                )  # fmt: skip
                found.append(observation.Observation(d, "decode_tps", 100.0, "a"))
    rows, _ = observation.rows(found)
    plan = design(rows)
    unpacking = rows.vector_flops < NOTHING_TO_UNPACK
    terms = [codes >= 0 for codes, _ in plan.columns["unpack"][1:] if np.any(codes >= 0)]
    assert terms  # ten rows are enough
    assert all(not np.any(members & ~unpacking) for members in terms)


def test_products_by_expert_reach_no_more_than_one_large_product() -> None:
    mixture = walk(models.load().resolve("qwen3-30b-a3b-instruct-2507"), schemes.get("bf16"))
    rates = speed.Rates(1e15, 1e14, NOTHING_TO_UNPACK, 1e14, expert_padding_tokens=0.0)
    slow, fast = (replace(rates, compute_efficiency=e, experts_compute_efficiency=1.0) for e in (0.3, 0.6))
    ratio = speed.prefill(mixture, slow, 8192).experts_s / speed.prefill(mixture, fast, 8192).experts_s
    assert ratio == pytest.approx(2.0, rel=1e-3)  # what makes large products faster makes these faster
    half = replace(fast, experts_compute_efficiency=0.5)
    assert speed.prefill(mixture, half, 8192).experts_s > speed.prefill(mixture, fast, 8192).experts_s


def test_engines_with_a_preallocated_cache_are_not_of_the_eager_lineage() -> None:
    assert traits("autoawq").lineage == traits("llm-awq").lineage == traits("exllamav2").lineage
    assert traits("transformers").lineage != traits("autoawq").lineage
