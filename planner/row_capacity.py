"""Rows of trtllm_kv_boundary.csv and tensor_bytes.csv -> what each asks: a largest batch, or a file's tensors.

A boundary row is the largest batch that TensorRT-LLM fitted beside a model; a row of tensor bytes counts the
tensors of one ggml type in a GGUF file.
"""

from __future__ import annotations

from collections.abc import Mapping

from estimators.deployment import Deployment, Placement, Settings, Workload
from hwdb.device import Machine
from planner import labels, names
from planner.asks import Ask, Refusal

Row = Mapping[str, str]
NATIVE = "BF16"  # what a repository without a suffix holds


def ask_boundary(row: Row) -> Ask | Refusal:
    """The largest batch of requests of `isl` + `osl` tokens on `tp` devices."""
    text = row["model"].strip()
    model = names.model(text, text.replace("Meta-Llama", "Llama"))
    if isinstance(model, Refusal):
        return model
    tail = text.rsplit("-", 1)[-1].upper()
    scheme = names.quant(tail if tail in ("FP8", "NVFP4", "INT8") else NATIVE, "trt-llm", model.id)
    if isinstance(scheme, Refusal):
        return scheme
    hardware = names.device(row["system"].replace("_", " "))
    if isinstance(hardware, Refusal):
        return hardware
    n, isl, osl = labels.count(row["tp"], 1), labels.count(row["isl"]), labels.count(row["osl"])
    if n < 1 or isl + osl < 1:
        return Refusal(f"tp {row['tp']}, isl {row['isl']} and osl {row['osl']} are not a deployment")
    machine, _ = names.machine(hardware, n)
    deployment = Deployment(
        model=model,
        scheme=scheme,
        machine=machine,
        engine="trt-llm",
        backend="cuda",
        placement=Placement(tensor_parallel=n),
        workload=Workload(isl, osl),
        settings=Settings(context_tokens=isl + osl, memory_fraction=labels.number(row["free_gpu_fraction"])),
    )
    return Ask(deployment, "boundary", n_devices=n)


def ask_tensors(row: Row) -> Ask | Refusal:
    """How many tensors, elements and bytes of `ggml_type` a file of this model in `scheme` holds."""
    held = names.llamacpp_file(row["model_canonical"], row["scheme"])
    if isinstance(held, Refusal):
        return held
    model, scheme = held
    if scheme.container != "gguf":
        return Refusal(f"`{scheme.id}` is not a mix of ggml types")
    deployment = Deployment(model, scheme, Machine("a file"), "llama.cpp", "cpu", Placement(n_gpu_layers=0))
    return Ask(deployment, "tensors", notes=(row["ggml_type"].strip().upper(),))
