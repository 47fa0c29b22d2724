"""Commands of engines: only what differs or is relied on, each with its reason, and refusals by name."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from hwdb.describe import machine
from modeldb import catalogue, schemes
from planner import engines
from planner.deploy import Wish, deployment
from planner.errors import UnknownName

QUANTS = {
    "llama.cpp": "Q4_K_M",
    "ollama": "Q4_K_M",
    "mlx": "mlx-4bit-g64",
    "ktransformers": "bf16",
}


def _deployment(engine: str, **wish: object):  # type: ignore[no-untyped-def]
    where = machine(gpus=("apple m2 ultra",), host_memory_bytes=64 << 30) if engine == "mlx" else None
    where = where or machine(gpus=("2xrtx 4090",), host_memory_bytes=128 << 30, cpu="ryzen 9 7950x")
    name = "qwen3-30b-a3b" if engine == "ktransformers" else "qwen3-8b"
    model, scheme = catalogue.load().resolve(name), schemes.get(QUANTS.get(engine, "bf16"))
    extra = {"n_cpu_expert_layers": 48} if engine == "ktransformers" else {}
    return deployment(model, scheme, where, Wish(engine=engine, pipeline_parallel=1, **extra, **wish))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", engines.names())
def test_every_engine_has_a_command_with_a_reason_for_each_flag(name: str) -> None:
    made = _deployment(name)
    module = engines.get(name)
    assert module.refuses(made) == ""
    command = module.command(made)
    assert all(len(reason.split()) >= 2 for _, reason in command.reasons())
    assert shlex.split(command.line())[-1] == command.argv()[-1]


@pytest.mark.parametrize("name", ["vllm", "sglang", "trt-llm", "lmdeploy", "llama.cpp"])
def test_the_context_and_the_users_that_were_priced_are_in_the_command(name: str) -> None:
    line = engines.get(name).command(_deployment(name, context_tokens=12288, users=3)).line()
    assert "12288" in line or str(3 * 12288) in line
    assert " 3" in line


@pytest.mark.parametrize("name", ["vllm", "sglang", "trt-llm", "tgi", "lmdeploy"])
def test_tensor_parallelism_needs_heads_that_divide(name: str) -> None:
    assert "divide" in engines.get(name).refuses(_deployment(name, tensor_parallel=7))
    assert " 2" in engines.get(name).command(_deployment(name, tensor_parallel=2)).line()


def test_llama_cpp_does_not_run_what_it_has_a_name_for_and_no_graph() -> None:
    made = _deployment("llama.cpp")
    renamed = replace(made, model=catalogue.load().resolve("gpt-j-6b"))
    assert "no graph" in engines.get("llama.cpp").refuses(renamed)
    assert "no graph" in engines.get("ollama").refuses(replace(renamed, engine="ollama"))


@pytest.mark.parametrize("name", ["vllm", "sglang", "trt-llm", "tgi", "lmdeploy"])
def test_servers_do_not_run_the_first_chatglm(name: str) -> None:
    made = replace(_deployment(name), model=catalogue.load().resolve("chatglm-6b"))
    assert "the first ChatGLM" in engines.get(name).refuses(made)


def test_defaults_of_llama_cpp_are_not_repeated() -> None:
    flags = {flag.name for flag in engines.get("llama.cpp").command(_deployment("llama.cpp")).flags}
    assert not flags & {"-ctk", "-ctv", "-fa", "-ub", "-b", "--swa-full", "-ncmoe"}


def test_a_quantized_cache_brings_flash_attention() -> None:
    made = _deployment("llama.cpp", kv_type_k="q8_0", kv_type_v="q8_0")
    assert "-ctk q8_0 -ctv q8_0 -fa on" in engines.get("llama.cpp").command(made).line()
    slow = replace(made, settings=replace(made.settings, flash_attention=False))
    assert "flash attention" in engines.get("llama.cpp").refuses(slow)


def test_unequal_gpus_share_layers_by_memory() -> None:
    made = _deployment("llama.cpp")
    both = machine(gpus=("rtx 3090", "rtx 3060"), host_memory_bytes=64 << 30)
    line = (
        engines.get("llama.cpp")
        .command(replace(made, machine=both, placement=replace(made.placement, pipeline_parallel=2)))
        .line()
    )
    assert "-ts 24,12" in line


def test_ollama_writes_a_modelfile_and_sets_its_cache_for_the_server() -> None:
    command = engines.get("ollama").command(_deployment("ollama", kv_type_k="q8_0", kv_type_v="q8_0"))
    name, text = command.files[0]
    assert name == "Modelfile"
    assert "PARAMETER num_ctx 4096" in text
    assert {v.name for v in command.environment} == {"OLLAMA_FLASH_ATTENTION", "OLLAMA_KV_CACHE_TYPE"}


def test_a_model_without_a_known_repository_brings_the_commands_that_make_it() -> None:
    made = _deployment("llama.cpp")
    plain = replace(made, model=catalogue.load().resolve("qwen3-14b"))
    command = engines.get("llama.cpp").command(plain)
    assert [words[0] for words in command.prepare] == ["hf", "python", "llama-quantize"]
    assert command.prepare[-1][2] == command.argv()[2] == "Qwen3-14B-Q4_K_M.gguf"


def test_no_command_trusts_remote_code_or_listens_to_the_world() -> None:
    for name in engines.names():
        line = engines.get(name).command(_deployment(name)).line()
        assert "trust-remote-code" not in line
        assert "0.0.0.0" not in line


@pytest.mark.parametrize(
    ("engine", "gpu", "word"), [("vllm", "tesla p40", "capability"), ("mlx", "rtx 4090", "Apple")]
)
def test_hardware_that_an_engine_cannot_use_is_refused(engine: str, gpu: str, word: str) -> None:
    made = _deployment("vllm")
    model_scheme = schemes.get("mlx-4bit-g64") if engine == "mlx" else made.scheme
    where = machine(gpus=(gpu,), host_memory_bytes=64 << 30)
    assert word in engines.get(engine).refuses(replace(made, machine=where, scheme=model_scheme))


def test_an_unknown_engine_lists_those_there_are() -> None:
    with pytest.raises(UnknownName) as caught:
        engines.get("llamacppp")
    assert "llama.cpp" in caught.value.hint
    assert engines.get("TensorRT-LLM").NAME == "trt-llm"
