"""What sets engines apart for speed: how they were built, not how fast they are."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Traits:
    """`lineage` groups engines that share kernels. `tensor_parallel`: several devices share each tensor
    (else they take layers in turn). `chunk_tokens`: the most new tokens of one forward pass, by default.
    `server`: measured behind an HTTP server or a scheduler, so that a request has a fixed cost.
    `max_sequences`: default cap on the sequences that run at once. `expert_launches`: what looping over one
    routed expert costs, in layers' launches (0: experts are fused).
    `kernels`: the engine whose kernels it runs as they are, where that is another."""

    lineage: str
    tensor_parallel: bool = True
    eager: bool = False
    chunk_tokens: int = 1 << 30
    server: bool = False
    max_sequences: int = 256
    kernels: str = ""
    expert_launches: float = 0.0


GGML = Traits("ggml", tensor_parallel=False, chunk_tokens=512)  # llama.cpp -ub
WRAPPED = replace(GGML, kernels="llama.cpp")
GRAPH = Traits("graph", chunk_tokens=8192, server=True)
#: Transformers ran its MoE layers as a Python loop over all experts. Assumed, not fitted: a tenth of a layer
#: each, the size of what Qwen3-30B-A3B (128 experts) takes per layer in the Qwen3 speed tables.
EXPERT_LOOP = 0.1
EAGER = Traits("eager", tensor_parallel=False, eager=True)
EXL = Traits("exl", tensor_parallel=False)

#: vLLM v1 schedules 8192 tokens a step on large GPUs (--max-num-batched-tokens), TensorRT-LLM 8192
#: (--max_num_tokens), SGLang 8192 (--chunked-prefill-size); sequences: vLLM 256, 1024 since 2025 on large
#: GPUs; TensorRT-LLM 2048.
TRAITS: dict[str, Traits] = {
    "llama.cpp": GGML,
    "ik_llama.cpp": GGML,
    "ollama": WRAPPED,
    "llamafile": WRAPPED,
    "koboldcpp": WRAPPED,
    "ctransformers": WRAPPED,
    "chatglm.cpp": GGML,
    "t-mac": GGML,
    "ipex-llm": GGML,  # its GGUF path is a fork of llama.cpp's SYCL backend
    "ktransformers": Traits("graph", chunk_tokens=4096),
    "vllm": Traits("graph", chunk_tokens=8192, server=True, max_sequences=256),
    "sglang": Traits("graph", chunk_tokens=8192, server=True, max_sequences=2048),
    "trt-llm": Traits("graph", chunk_tokens=8192, server=True, max_sequences=2048),
    "lmdeploy": GRAPH,
    "tgi": GRAPH,
    "pegainfer": GRAPH,
    "nano-vllm": GRAPH,
    "transformers": Traits("eager", tensor_parallel=False, eager=True, expert_launches=EXPERT_LOOP),
    "litgpt": EAGER,
    "autogptq": EAGER,
    "autoawq": EXL,  # fused layers: one attention kernel over a cache that is there from the start
    "llm-awq": EXL,  # TinyChat: likewise
    "candle": EAGER,
    "deepspeed": GRAPH,  # on Gaudi, with HPU graphs
    "deepspeed-mii": GRAPH,  # FastGen: ragged kernels, continuous batching
    "mlx": Traits("mlx", tensor_parallel=False, chunk_tokens=2048),  # mlx_lm prefill_step_size
    "exllamav3": EXL,
    "exllamav2": Traits("exl", tensor_parallel=False, chunk_tokens=2048),
    "mlc-llm": Traits("graph", chunk_tokens=2048),
    "gpt-fast": Traits("graph"),
    "ctranslate2": Traits("graph", tensor_parallel=False),
    "onnxruntime": Traits("graph", tensor_parallel=False),
    "transformers-neuronx": Traits("graph"),
    "sambaflow": Traits("graph"),
    "llm-plan-runner": Traits("runner", tensor_parallel=False, chunk_tokens=512),
}


def traits(engine: str) -> Traits:
    """Traits of an engine; an engine nobody described behaves like a graph engine."""
    return TRAITS.get(engine, GRAPH)
