"""Rows of memory.csv and llamacpp_memory.csv -> the deployment whose memory was read.

Remarks say how the figure was taken (which command, which buffers); the figures they quote are never looked
at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

from estimators.deployment import Backend, Deployment, Placement, Settings, Workload
from hwdb.device import Device, Machine
from modeldb.model import Model
from modeldb.scheme import Scheme
from planner import labels, names
from planner.asks import Ask, Flag, Metric, Refusal
from planner.row_speed import n_expert_layers

Row = Mapping[str, str]
# what people with several cards fill with weights, beside cache and buffers: median of 30 load logs
FILLED_SHARE = 0.70
FLASH_BY_DEFAULT_SINCE = 2025.67  # llama.cpp PR 15434: -fa auto
ISSUES_YEAR = 2025.4  # issues and discussions of ik_llama.cpp's first half year
SERVER_SLOTS, SERVER_SLOTS_SINCE = 4, 2025.92  # llama-server: -np auto is 4 with one unified cache
USUAL_GPU = Device(
    "nvidia-gpu", "NVIDIA GPU of 24 GiB", "nvidia", "gpu", memory_bytes=24 << 30, basis="assumed",
    notes="the device is not stated; 24 GiB are the most frequent among load logs",
)  # fmt: skip
METRICS = ("weights_gib", "kv_gib", "compute_buffer_gib", "total_gib", "gpu_mem_gb", "file_gb", "kv_tokens")


@dataclass(frozen=True)
class _Named:
    """What the row's names denote. `device` is None where none is named."""

    engine: str
    model: Model
    scheme: Scheme
    device: Device | None


def ask(row: Row) -> Ask | Refusal:
    """What a row of memory.csv asks."""
    metric = row["metric"].strip()
    if metric not in METRICS:
        return Refusal(f"metric `{metric}` is not one of {', '.join(METRICS)}")
    named = _named(row)
    if isinstance(named, Refusal):
        return named
    engine, model, notes = named.engine, named.model, row["notes"]
    machine, backend = _machine(named.device, notes, engine)
    n_devices = len(machine.devices)
    year = _year(row, notes)
    prompt, output = _lengths(notes, row, engine)
    context = labels.count(row["context"]) or prompt + output or _whole_context(model, metric, engine)
    sequences, slots = max(1, labels.count(row["batch"])), _slots(notes, model, year)
    if slots > sequences:  # a server's context is that of all its slots
        sequences, context = slots, -(-context // slots)
    if year is None and _released(model) >= FLASH_BY_DEFAULT_SINCE:
        year = _released(model)
    settings = _settings(row, engine, year, context)
    reported = re.search(r"; weights ([\d.]+) GiB", notes) if metric == "total_gib" else None
    placement = _placement(notes, engine, model, n_devices, backend)
    resident = "device-resident weight buffers only" in notes
    if resident or "sum of compute buffers" in notes:
        placement = _with_experts_on_host(placement, named, machine, settings.latent_cache)
    deployment = Deployment(
        model=model,
        scheme=named.scheme,
        machine=machine,
        engine=engine,
        backend=cast(Backend, backend),
        placement=placement,
        workload=Workload(prompt, output, n_sequences=sequences),
        settings=replace(
            settings,
            unified_cache=True if slots > 1 else None,
            weights_bytes=float(reported.group(1)) * 2**30 if reported else None,
        ),
    )
    remarks: dict[Flag, bool] = {
        "approximate-scheme": named.scheme.approximate,
        "offloaded": resident and metric == "weights_gib",
        "decimal-gb": bool(re.search(r"\bGB ?= ?1e9|/ ?1e9\b", notes)),
    }
    flags = tuple(flag for flag, holds in remarks.items() if holds)
    return Ask(deployment, cast(Metric, metric), flags, n_devices=max(1, n_devices))


def _named(row: Row) -> _Named | Refusal:
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
    device = names.device(row["hardware_canonical"]) if row["hardware_canonical"].strip() else None
    return device if isinstance(device, Refusal) else _Named(engine, model, scheme, device)


def _settings(row: Row, engine: str, year: float | None, context_tokens: int) -> Settings:
    """Engine settings that the row states; the rest stays at the engine's defaults."""
    notes = row["notes"]
    key, value = labels.kv_types(row["kv_type"])
    return Settings(
        context_tokens=context_tokens,
        kv_type_k=key,
        kv_type_v=value,
        flash_attention=_flash(notes, engine, year),
        batch_tokens=labels.noted(notes, "n_batch") or labels.noted(notes, "max_num_batched_tokens"),
        micro_batch_tokens=labels.noted(notes, "n_ubatch"),
        eager=labels.eager(engine, notes),
        memory_fraction=_fraction(notes),
        program="bench" if engine in ("llama.cpp", "ik_llama.cpp") else "server",
        year=year,
        latent_cache="MLA" in row["kv_type"] if engine == "ik_llama.cpp" else None,
    )


def _machine(hardware: Device | None, notes: str, engine: str) -> tuple[Machine, str]:
    """The devices whose buffers a log lists (by name: CUDA0, CUDA1, ...), and the backend that drives them.

    Where a list names no accelerator the run was on the CPU; one whose device is not stated is a usual card.
    """
    listed = re.search(r"(?:weight buffers only|sum of compute buffers): ?([^;]*)", notes)
    if listed:
        named = set(re.findall(r"\b(?:CUDA|ROCm|Vulkan|SYCL|Metal)\d+(?==)", listed.group(1)))
        n = len(named) or ("_Host=" in listed.group(1)) * 1
        if not n:
            return Machine("host only", host=hardware if hardware and hardware.kind == "cpu" else None), "cpu"
        hardware = hardware or USUAL_GPU
        machine, _ = names.machine(hardware, n)
        word = "vulkan" if "Vulkan" in listed.group(1) else _backend_word(notes)
        return machine, labels.backend(word, hardware.vendor, hardware.kind, engine)
    if hardware is None:
        return Machine("not stated"), "cpu"
    machine, _ = names.machine(hardware, _n_devices(notes))
    return machine, labels.backend(_backend_word(notes), hardware.vendor, hardware.kind, engine)


def _with_experts_on_host(
    placement: Placement, named: _Named, machine: Machine, latent: bool | None
) -> Placement:
    """The usual placement of a mixture of experts that the devices cannot hold, where the log names none.

    All layers go to the devices, and the routed experts of as many as fill `FILLED_SHARE` of their memory.
    """
    model, scheme = named.model, named.scheme
    moe = n_expert_layers(model)
    if not machine.devices or not moe or placement.n_cpu_expert_layers or placement.n_gpu_layers is not None:
        return placement
    from estimators.deployed_walk import known_walk
    from estimators.ik_llamacpp import as_stored

    walk = known_walk(model, scheme)
    if named.engine == "ik_llama.cpp":
        walk = as_stored(walk, model, scheme, latent is not False)
    room = FILLED_SHARE * sum(device.memory_bytes or 0 for device in machine.devices)
    whole = float(walk.total_bytes - walk.embedding_bytes + (walk.embedding_bytes if walk.tied else 0))
    if whole <= room / FILLED_SHARE:
        return placement
    each = float(walk.expert_bytes) / moe
    kept = int(max(room - (whole - float(walk.expert_bytes)), 0.0) / each)
    return replace(placement, n_cpu_expert_layers=moe - min(kept, moe))


def _whole_context(model: Model, metric: str, engine: str) -> int:
    """A cache whose context is not printed is that of the model's own context (`-c 0`)."""
    if metric == "kv_gib" and labels.container(engine) == "gguf" and model.max_context:
        return model.max_context
    return 512


def _slots(notes: str, model: Model, year: float | None) -> int:
    """Users of a llama-server that prints its memory by device: four slots since it has that default."""
    recent = year if year is not None else _released(model)
    return SERVER_SLOTS if '" column' in notes and recent >= SERVER_SLOTS_SINCE else 1


def _released(model: Model) -> float:
    return labels.year(model.release_date) or 0.0 if model.release_date else 0.0


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


def _placement(notes: str, engine: str, model: Model, n_devices: int, backend: str) -> Placement:
    if backend == "cpu" or n_devices == 0:
        return Placement(n_gpu_layers=0)
    tensor, pipeline = (1, n_devices) if labels.splits_layers(engine) else (n_devices, 1)
    layers = None
    if found := re.search(r"offloaded (\d+)/(\d+) layers", notes):
        some, whole = int(found.group(1)), int(found.group(2))
        layers = None if some >= whole else some
    on_host = n_expert_layers(model) if "exps=CPU" in notes else 0
    return Placement(layers, on_host, tensor_parallel=tensor, pipeline_parallel=pipeline)


def _flash(notes: str, engine: str, year: float | None) -> bool:
    stated = labels.noted(notes, "flash_attn")
    if stated is not None:
        return bool(stated)
    if re.search(r"fa=(\S*)", notes):
        return bool(re.search(r"fa=-fa 1", notes))
    return labels.container(engine) != "gguf" or (year is not None and year >= FLASH_BY_DEFAULT_SINCE)


def _fraction(notes: str) -> float | None:
    found = re.search(
        r"(?:gpu_memory_utilization|mem-fraction-static|free_gpu_memory_fraction)[ =]([\d.]+)", notes
    )
    return float(found.group(1).rstrip(".")) if found else None


def _year(row: Row, notes: str) -> float | None:
    if "old llama.cpp" in notes or "-ngl 10000" in notes:
        return 2023.9
    known = labels.year("", row["source"])
    return ISSUES_YEAR if known is None and row["source"] == "ik_llama-github-data" else known


def ask_llamacpp(row: Row) -> Ask | Refusal:
    """What a row of llamacpp_memory.csv asks: the bytes of llama.cpp's CPU backend with these settings."""
    held = names.llamacpp_file(row["model_canonical"], row["scheme"])
    if isinstance(held, Refusal):
        return held
    model, scheme = held
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
