"""Rows of memory.csv, llamacpp_memory.csv and trtllm_kv_boundary.csv -> the deployment whose memory was read.

Remarks say how the figure was taken (which command, which buffers); the figures they quote are never looked
at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

from estimators.deployment import Backend, Deployment, Placement, Settings, Workload
from hwdb.device import Machine
from planner import labels, names
from planner.asks import Ask, Flag, Metric, Refusal
from planner.row_speed import n_expert_layers

Row = Mapping[str, str]
METRICS = ("weights_gib", "kv_gib", "compute_buffer_gib", "total_gib", "gpu_mem_gb", "file_gb", "kv_tokens")


def ask(row: Row) -> Ask | Refusal:
    """What a row of memory.csv asks."""
    metric = row["metric"].strip()
    if metric not in METRICS:
        return Refusal(f"metric `{metric}` is not one of {', '.join(METRICS)}")
    engine = labels.engine(row["engine"]) or ("llama.cpp" if not row["engine"] else None)
    if engine is None:
        return Refusal(f"engine `{row['engine']}` is not known")
    model = names.model(row["model_canonical"], row["model"])
    if isinstance(model, Refusal):
        return model
    scheme = names.quant(row["quant"], engine, model.id, model.native_dtype)
    if isinstance(scheme, Refusal):
        return scheme
    if refusal := names.unreadable(model, scheme):
        return refusal
    flags: list[Flag] = ["approximate-scheme"] if scheme.approximate else []
    notes = row["notes"]
    machine, backend = Machine("not stated"), "cpu"
    if row["hardware_canonical"].strip():
        hardware = names.device(row["hardware_canonical"])
        if isinstance(hardware, Refusal):
            return hardware
        machine, _ = names.machine(hardware, _n_devices(notes))
        backend = labels.backend(_backend_word(notes), hardware.vendor, hardware.kind, engine)
    if re.search(r"device-resident weight buffers only", notes) and metric == "weights_gib":
        flags.append("offloaded")
    prompt, output = _lengths(notes, row, engine)
    context = labels.count(row["context"]) or prompt + output or 512
    key, value = labels.kv_types(row["kv_type"])
    reported = re.search(r"; weights ([\d.]+) GiB", notes) if metric == "total_gib" else None
    year = _year(row, notes)
    deployment = Deployment(
        model=model,
        scheme=scheme,
        machine=machine,
        engine=engine,
        backend=cast(Backend, backend),
        placement=_placement(notes, engine, model, len(machine.devices), backend),
        workload=Workload(prompt, output, n_sequences=max(1, labels.count(row["batch"], 1))),
        settings=Settings(
            context_tokens=context,
            kv_type_k=key,
            kv_type_v=value,
            flash_attention=_flash(notes, engine),
            batch_tokens=labels.noted(notes, "n_batch") or labels.noted(notes, "max_num_batched_tokens"),
            micro_batch_tokens=labels.noted(notes, "n_ubatch"),
            eager=labels.eager(engine, notes),
            memory_fraction=_fraction(notes),
            program="bench" if engine in ("llama.cpp", "ik_llama.cpp") else "server",
            year=year,
            latent_cache="MLA" in row["kv_type"] if engine == "ik_llama.cpp" else None,
            weights_bytes=float(reported.group(1)) * 2**30 if reported else None,
        ),
    )
    return Ask(deployment, cast(Metric, metric), tuple(flags), n_devices=max(1, len(machine.devices)))


def _n_devices(notes: str) -> int:
    found = re.search(r"(?:^|; |over )(\d+) ?(?:x )?GPU", notes) or re.search(r"\((\d)x[A-Z]", notes)
    if found:
        return max(1, int(found.group(1)))
    parallel = re.search(r"\bTP ?(\d+)", notes)
    return int(parallel.group(1)) if parallel else 1


def _backend_word(notes: str) -> str:
    low = notes.lower()
    for word in ("vulkan", "hip", "rocm", "metal", "sycl"):
        if word in low:
            return word
    return ""


def _lengths(notes: str, row: Row, engine: str) -> tuple[int, int]:
    """Prompt and output tokens of the run whose memory was read."""
    if found := re.search(r"input (\d+)\+(\d+) generated", notes):
        return int(found.group(1)), int(found.group(2))
    if found := re.search(r"generating (\d+) tokens|(\d+) new tokens", notes):
        return 1, int(found.group(1) or found.group(2))
    if found := re.search(r"llama-bench (pp|tg)(\d+)", notes):
        return (int(found.group(2)), 0) if found.group(1) == "pp" else (0, int(found.group(2)))
    context = labels.count(row["context"])
    if engine == "mlx" and context > 128:
        return context - 128, 128
    return max(0, context), 0


def _placement(notes: str, engine: str, model: object, n_devices: int, backend: str) -> Placement:
    from modeldb.model import Model

    assert isinstance(model, Model)
    if backend == "cpu" or n_devices == 0:
        return Placement(n_gpu_layers=0)
    tensor, pipeline = (1, n_devices) if labels.splits_layers(engine) else (n_devices, 1)
    layers = None
    if found := re.search(r"offloaded (\d+)/(\d+) layers", notes):
        some, whole = int(found.group(1)), int(found.group(2))
        layers = None if some >= whole else some
    on_host = n_expert_layers(model) if "exps=CPU" in notes else 0
    return Placement(layers, on_host, tensor_parallel=tensor, pipeline_parallel=pipeline)


def _flash(notes: str, engine: str) -> bool:
    stated = labels.noted(notes, "flash_attn")
    if stated is not None:
        return bool(stated)
    if re.search(r"fa=(\S*)", notes):
        return bool(re.search(r"fa=-fa 1", notes))
    return labels.container(engine) != "gguf"


def _fraction(notes: str) -> float | None:
    found = re.search(
        r"(?:gpu_memory_utilization|mem-fraction-static|free_gpu_memory_fraction)[ =]([\d.]+)", notes
    )
    return float(found.group(1).rstrip(".")) if found else None


def _year(row: Row, notes: str) -> float | None:
    if "old llama.cpp" in notes or "-ngl 10000" in notes:
        return 2023.9
    return labels.year("", row["source"])


def ask_llamacpp(row: Row) -> Ask | Refusal:
    """What a row of llamacpp_memory.csv asks: the bytes of llama.cpp's CPU backend with these settings."""
    model = names.model(row["model_canonical"])
    if isinstance(model, Refusal):
        return model
    scheme = names.quant(row["scheme"], "llama.cpp")
    if isinstance(scheme, Refusal):
        return scheme
    if refusal := names.unreadable(model, scheme):
        return refusal
    context, sequences = labels.count(row["ctx"]), max(1, labels.count(row["n_seq"], 1))
    if context <= 0:
        return Refusal(f"context `{row['ctx']}` is not a positive number")
    unified = bool(labels.flag(row["kv_unified"]))
    outputs = labels.count(row["n_outputs_max"])
    micro = labels.count(row["n_ubatch"]) or 512
    deployment = Deployment(
        model=model,
        scheme=scheme,
        machine=Machine("llama.cpp, CPU backend"),
        engine="llama.cpp",
        backend="cpu",
        placement=Placement(n_gpu_layers=0),
        workload=Workload(prompt_tokens=0, output_tokens=0, n_sequences=sequences),
        settings=Settings(
            context_tokens=context // sequences,
            kv_type_k=row["kv_type_k"].strip() or "f16",
            kv_type_v=row["kv_type_v"].strip() or "f16",
            flash_attention=labels.flag(row["flash_attn"]) is not False,
            batch_tokens=labels.count(row["n_batch"]) or 2048,
            micro_batch_tokens=micro,
            unified_cache=unified,
            full_window_cache=bool(labels.flag(row["swa_full"])),
            program="server" if outputs else "bench",
            n_outputs=outputs or None,
        ),
    )
    return Ask(deployment, "llamacpp")
