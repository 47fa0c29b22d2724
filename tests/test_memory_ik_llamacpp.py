"""ik_llama.cpp's memory against lines of public load logs (github.com/ikawrakow/ik_llama.cpp, issues)."""

from __future__ import annotations

from typing import Any

import pytest

from estimators.deployment import Deployment, Placement, Settings, Workload
from estimators.memory_rows import observed_bytes
from hwdb import catalogue as hardware
from hwdb.device import Machine
from modeldb import catalogue, schemes
from planner import row_memory
from planner.asks import Ask

GIB, MIB = 1 << 30, 1 << 20


def deployment(model: str, scheme: str, gpus: int = 0, moved: int = 0, **settings: object) -> Deployment:
    card = hardware.load().resolve("rtx 4090")
    return Deployment(
        catalogue.load().resolve(model), schemes.get(scheme), Machine("m", (card,) * gpus), "ik_llama.cpp",
        "cuda" if gpus else "cpu",
        Placement(None if gpus else 0, moved, pipeline_parallel=max(1, gpus)), Workload(),
        Settings(program="bench", year=2025.4, **settings),  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "mib"),
    [("Qwen/Qwen3-30B-A3B", 300.75), ("deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct", 204.0),
     ("moonshotai/Kimi-K2-Instruct", 334.0)],
)  # fmt: skip
def test_logits_and_their_norm_fill_the_buffer_of_a_short_context(model, mib):
    d = deployment(model, "Q4_K_M", context_tokens=512, latent_cache=False, flash_attention=True)
    assert observed_bytes(d, "compute_buffer_gib").best / MIB == pytest.approx(mib, rel=0.01)


def test_latent_caches_are_expanded_for_prompts():
    # 3,425 MiB on the GPU and 176 on the host with 32,768 tokens and -ub 512; 2,662 on a CPU
    settings: dict[str, Any] = {
        "context_tokens": 32768,
        "latent_cache": True,
        "kv_type_k": "q8_0",
        "kv_type_v": "q8_0",
    }
    one = deployment("DeepSeek-R1-0528", "IQ4_KS_R4", 1, 58, **settings)
    assert observed_bytes(one, "compute_buffer_gib").best / MIB == pytest.approx(3601, rel=0.05)
    host = deployment("DeepSeek-R1-0528", "IQ4_KS_R4", **settings)
    assert observed_bytes(host, "compute_buffer_gib").best / MIB == pytest.approx(2662, rel=0.05)
    settings["context_tokens"] = 8192
    short = deployment("DeepSeek-R1-0528", "IQ4_KS_R4", 1, 58, **settings)
    assert observed_bytes(short, "compute_buffer_gib").best < observed_bytes(one, "compute_buffer_gib").best


@pytest.mark.parametrize(
    ("model", "scheme", "gib"),
    [("DeepSeek-R1-0528", "IQ2_K_R4", 219.02), ("DeepSeek-R1-0528", "IQ4_KS_R4", 367.77),
     ("deepseek-ai/DeepSeek-V3-0324", "IQ4_K_R4", 386.18), ("Qwen/Qwen3-235B-A22B", "IQ6_K", 198.26)],
)  # fmt: skip
def test_its_recipes_keep_all_but_routed_experts_at_eight_bits(model, scheme, gib):
    d = deployment(model, scheme, latent_cache=True)
    assert observed_bytes(d, "weights_gib").best / GIB == pytest.approx(gib, rel=0.03)


ROW = {
    "source": "a log", "hardware_canonical": "", "engine": "ik_llama.cpp", "model": "",
    "model_canonical": "Qwen/Qwen3-235B-A22B", "quant": "IQ3_K", "context": "32768", "kv_type": "f16",
    "batch": "1", "metric": "compute_buffer_gib",
    "notes": "sum of compute buffers: CUDA0=1 MiB, CUDA1=1 MiB, CUDA_Host=1 MiB; offloaded 95/95 layers",
}  # fmt: skip


def test_a_log_names_the_devices_by_their_buffers_and_their_figures_are_not_read():
    found = row_memory.ask(ROW)
    assert isinstance(found, Ask)
    assert len(found.deployment.machine.devices) == 2
    assert found.deployment.backend == "cuda"
    assert found.deployment.placement.n_cpu_expert_layers > 0  # 100 GiB do not fit two cards
    other = row_memory.ask({**ROW, "notes": ROW["notes"].replace("=1 MiB", "=4444 MiB")})
    assert other == found
    host = row_memory.ask({**ROW, "notes": "sum of compute buffers: CPU=300 MiB; n_ubatch=512"})
    assert isinstance(host, Ask)
    assert not host.deployment.machine.devices
