"""Single rows become the deployments that were measured."""

from __future__ import annotations

from typing import Any

import pytest

from planner import rows
from planner.asks import Ask, Refusal


def speed(**fields: str) -> Ask | Refusal:
    base = dict.fromkeys(rows.READS["speed"], "")
    base |= {
        "hardware_canonical": "nvidia-rtx-3090", "engine": "llama.cpp", "backend": "CUDA", "n_devices": "1",
        "model_canonical": "Qwen/Qwen3-8B", "quant": "Q4_K_M", "metric": "decode_tps", "input_tokens": "0",
        "output_tokens": "128", "depth": "0", "batch_or_concurrency": "1",
    }  # fmt: skip
    return rows.ask(rows.Record(2, "", {**base, **fields}), "speed")


def asked(**fields: str) -> Ask:
    found = speed(**fields)
    assert isinstance(found, Ask), found
    return found


def test_a_plain_llama_bench_row() -> None:
    found = asked(depth="4096", kv_type="q8_0", flash_attn="1", n_gpu_layers="99", notes="n_ubatch=1024")
    d = found.deployment
    assert (d.model.id, d.scheme.id, d.engine, d.backend) == ("qwen3-8b", "Q4_K_M", "llama.cpp", "cuda")
    assert (d.workload.prompt_tokens, d.workload.output_tokens, d.workload.cached_tokens) == (0, 128, 4096)
    assert (d.settings.kv_type_k, d.settings.flash_attention, d.settings.micro_batch_tokens) == (
        "q8_0",
        True,
        1024,
    )
    assert d.placement.n_gpu_layers is None
    assert found.flags == ()


@pytest.mark.parametrize(
    ("hardware", "backend", "layers", "placed"),
    [
        ("apple-m2-ultra-76c", "Metal", "1", None),  # on Metal any number means everything
        ("nvidia-rtx-3090", "CUDA", "10000", None),
        ("nvidia-rtx-3090", "CUDA", "-1", None),
        ("nvidia-rtx-3090", "CUDA", "20", 20),
        ("amd-ryzen-9-7950x", "CPU", "99", 0),
    ],
)
def test_layers_on_the_accelerator(hardware: str, backend: str, layers: str, placed: int | None) -> None:
    found = asked(hardware_canonical=hardware, backend=backend, n_gpu_layers=layers)
    assert found.deployment.placement.n_gpu_layers == placed
    assert ("offloaded" in found.flags) is (placed == 20)


MOE: dict[str, Any] = {"model_canonical": "Qwen/Qwen3-235B-A22B", "quant": "Q8_0", "engine": "ik_llama.cpp"}


@pytest.mark.parametrize(
    ("host", "layers"),
    [
        ("AMD 9950X gaming rig, 96GB RAM; -ot blk.12-93 ffn=CPU", 82),
        ("Threadripper PRO 7965WX; experts on CPU (-ot exps=CPU)", 94),
        ("i5-13600K; --n-cpu-moe 26", 26),
    ],
)
def test_experts_on_the_host_are_counted_in_layers(host: str, layers: int) -> None:
    found = asked(**MOE, host_note=host)
    assert found.deployment.placement.n_cpu_expert_layers == layers
    assert "offloaded" in found.flags
    assert found.deployment.machine.host is not None


def test_what_does_not_fit_spills_and_the_row_says_so() -> None:
    found = asked(model_canonical="Qwen/Qwen3-32B", quant="Q8_0")  # 34 GB on a card of 24
    assert "spilled" in found.flags
    layers = found.deployment.placement.n_gpu_layers
    assert layers is not None
    assert 0 < layers < 64
    moe = asked(**MOE)
    assert 0 < moe.deployment.placement.n_cpu_expert_layers <= 94
    assert "spilled" not in asked().flags


def test_a_reported_size_corrects_an_approximate_scheme() -> None:
    found = asked(quant="UD-Q4_K_XL", weights_gib_if_reported="4.78")
    assert found.deployment.settings.weights_bytes == pytest.approx(4.78 * 2**30)
    assert "size-corrected" in found.flags
    assert "approximate-scheme" in asked(quant="UD-Q4_K_XL").flags


def test_a_cpu_row_has_a_host_and_no_accelerator() -> None:
    machine = asked(hardware_canonical="intel-xeon-6980p", backend="CPU", threads="64").deployment.machine
    assert machine.devices == ()
    assert machine.host is not None


def test_several_devices_of_one_kind() -> None:
    d = asked(n_devices="4", engine="vllm", quant="BF16").deployment
    assert len(d.machine.devices) == 4
    assert d.placement.tensor_parallel == 4


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"hardware_canonical": "nvidia-rtx-9999"}, "no device is called"),
        ({"model_canonical": "nobody/nothing-7b"}, "no model is called"),
        ({"quant": "Q99_X"}, "no quantization is called"),
        ({"engine": "abacus"}, "engine `abacus` is not known"),
        ({"metric": "joules"}, "metric `joules` is not one of"),
    ],
)
def test_what_nobody_knows_is_refused_by_name(fields: dict[str, str], sentence: str) -> None:
    found = speed(**fields)
    assert isinstance(found, Refusal)
    assert sentence in found.reason
    assert "\n" not in found.reason


def test_file_names_of_quantized_models_resolve_to_the_model() -> None:
    for name in ("Qwen3-8B-Q4_K_M.gguf", "bartowski/Qwen_Qwen3-8B-GGUF", "Qwen_Qwen3-8B-Q4_K_M.gguf"):
        found = asked(model_canonical="", model=name)
        assert found.deployment.model.id == "qwen3-8b"


def test_disaggregated_rows_have_two_deployments() -> None:
    base = dict.fromkeys(rows.READS["serving"], "")
    base |= {
        "engine": "trtllm", "model_canonical": "deepseek-ai/DeepSeek-R1",
        "hardware_canonical": "nvidia-b200-180gb", "mode": "disagg", "isl": "8192", "osl": "1024",
        "gemm_quant_mode": "nvfp4", "id": "x_c64_y",
        "prefill_num_workers": "1", "prefill_tp_size": "4", "decode_num_workers": "2", "decode_tp_size": "8",
    }  # fmt: skip
    found = rows.ask(rows.Record(2, "", base), "serving")
    assert isinstance(found, Ask)
    assert found.prefill is not None
    assert found.deployment.workload.n_sequences == 32  # 64 users over two decode workers
    assert len(found.prefill.machine.devices) == 4
    assert found.n_devices == 20
    assert "disaggregated" in found.flags


@pytest.mark.parametrize(
    ("engine", "quant", "stated", "kept"),
    [
        ("trt-llm", "FP8", "", "fp8"), ("trt-llm", "NVFP4", "", "fp8"), ("trt-llm", "FP8", "fp16", "f16"),
        ("trt-llm", "FP16", "", "f16"), ("vllm", "FP8", "", "f16"),
    ],
)  # fmt: skip
def test_tensorrt_llm_takes_the_cache_type_of_its_checkpoint(
    engine: str, quant: str, stated: str, kept: str
) -> None:
    found = asked(hardware_canonical="nvidia-h100-80gb-sxm", engine=engine, quant=quant, kv_type=stated)
    assert found.deployment.settings.kv_type_k == kept


def test_a_rate_of_one_device_of_a_world_is_of_the_whole_world() -> None:
    found = asked(
        engine="sglang", model_canonical="Qwen/Qwen3-30B-A3B", quant="BF16", hardware_canonical="nvidia-h20-96gb",
        batch_or_concurrency="100", notes="tokens per GPU per second (TGS); world size 4, decode bs 100",
    )  # fmt: skip
    assert (found.n_devices, found.per_device, found.deployment.workload.n_sequences) == (4, True, 400)
    alone = asked(notes="tokens per GPU per second (TGS); 1 GPU, decode bs 64", batch_or_concurrency="64")
    assert (alone.n_devices, alone.deployment.workload.n_sequences) == (1, 64)


def test_prompts_of_no_stated_length_fill_the_pass_that_is_stated() -> None:
    found = asked(metric="prefill_tps", input_tokens="", output_tokens="", notes="max prefill tokens 16384")
    work = found.deployment.workload
    assert work.n_sequences * work.prompt_tokens == 16384
    assert "assumed-lengths" in found.flags


@pytest.mark.parametrize(("output", "spread"), [("2000.0", 1.0), ("4.0", 1.0), ("197.3", 5.0)])
def test_outputs_whose_mean_is_a_whole_number_are_all_as_long(output: str, spread: float) -> None:
    notes = "vllm bench serve; 1000 requests, all sent at once (no concurrency cap); avg in/out per request"
    found = asked(
        engine="vllm", quant="BF16", metric="output_throughput_tps", input_tokens="219.1", output_tokens=output,
        batch_or_concurrency="", notes=notes,
    )  # fmt: skip
    assert found.deployment.workload.output_spread == spread


def test_what_goes_on_since_a_date_is_not_older_than_its_device() -> None:
    row = {"engine": "llama.cpp", "backend": "Metal", "quant": "Q4_0"}
    years = {}
    for chip in ("apple-m2-max-38c", "apple-m5-pro-20c"):
        for date in ("2023-11", "2023-11 onward"):
            years[chip, date] = asked(
                **row, hardware_canonical=chip, date_if_known=date
            ).deployment.settings.year
    assert years["apple-m2-max-38c", "2023-11 onward"] == years["apple-m2-max-38c", "2023-11"]
    assert years["apple-m5-pro-20c", "2023-11"] == years["apple-m2-max-38c", "2023-11"]
    assert (years["apple-m5-pro-20c", "2023-11 onward"] or 0) >= 2025.5


def test_an_engine_that_names_no_quantization_runs_its_usual_one() -> None:
    assert asked(engine="autoawq", quant="").deployment.scheme.id == "awq-4bit-g128"
    assert asked(engine="ollama", quant="").deployment.scheme.id == "Q4_K_M"
