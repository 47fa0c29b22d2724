"""Names in a row -> values of the catalogues: model, scheme, machine. Cached, because files repeat
themselves."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from hwdb.device import Device, Machine
from hwdb.errors import HardwareError
from modeldb.errors import ModelError
from modeldb.model import Model
from modeldb.scheme import Scheme
from planner import labels, quant_words
from planner.asks import Refusal


@dataclass(frozen=True)
class Named:
    """What the names of a row denote."""

    engine: str
    device: Device
    model: Model
    scheme: Scheme


@lru_cache(maxsize=4096)
def device(name: str) -> Device | Refusal:
    """The catalogue's device of this name."""
    from hwdb import catalogue

    if not name.strip():
        return Refusal("no hardware is named")
    try:
        return catalogue.load().resolve(name)
    except HardwareError as error:
        return Refusal(str(error))


@lru_cache(maxsize=4096)
def model(*names: str) -> Model | Refusal:
    """The first of these names that the catalogue knows; the refusal speaks of the first one given."""
    from modeldb import catalogue

    refusal = Refusal("no model is named")
    first = True
    for name in names:
        for spelling in _spellings(name):
            try:
                return catalogue.load().resolve(spelling)
            except ModelError as error:
                if first:
                    refusal, first = Refusal(str(error)), False
    return refusal


_QUANT_TAIL = re.compile(
    r"[-._](?:UD-)?(?:I?Q\d\w*|F16|BF16|MXFP4\w*|GGUF|MLX-\d+bit|\d-?bit|AWQ\w*|GPTQ\w*|W4A16|INT[48]|"
    r"Int[48]|FP8|NVFP4\S*|NF4|bnb)$",
    re.IGNORECASE,
)


def _spellings(name: str) -> list[str]:
    """`owner/Model-Q4_K_M.gguf` is a file of `Model`: the name itself, then without suffixes, then without
    owner."""
    name = name.strip()
    if not name:
        return []
    found = [name]
    bare = re.sub(r"\.gguf$", "", name)
    bare = re.sub(r"-\d{5}-of-\d{5}$", "", bare)
    while bare != (shorter := _QUANT_TAIL.sub("", bare)):
        bare = shorter
    found.append(bare)
    if "/" in bare:
        found.append(bare.split("/", 1)[1])
    last = bare.rsplit("/", 1)[-1]
    if "_" in last:  # publisher_Model, as bartowski names files
        found += [last.replace("_", "/", 1), last.split("_", 1)[1]]
    return list(dict.fromkeys(found))


@lru_cache(maxsize=4096)
def quant(label: str, engine: str, model_id: str = "", native: str = "") -> Scheme | Refusal:
    """The scheme that a printed quantization means for an engine and a model."""
    from modeldb import schemes

    kind = labels.container(engine, label)
    text = _tidy(label)
    if not text or quant_words.aside(text):  # the engine's usual, where only a kernel is named
        text = labels.usual_quant(engine) or text
    if not text:
        return Refusal("no quantization is named")
    if engine == "chatglm.cpp":
        return _every_matrix(text)
    name = _gguf_scheme(text, model_id) if kind == "gguf" else _other_scheme(text, kind, engine, model_id)
    if kind == "safetensors" and native == "mxfp4" and name in ("bf16", "fp16"):
        name = "mxfp4-hf"
    try:
        return schemes.get(name)
    except ModelError as error:
        meant = quant_words.read(label)
        if meant is None or meant == text:
            return Refusal(str(error))
    name = _gguf_scheme(meant, model_id) if kind == "gguf" else _other_scheme(meant, kind, engine, model_id)
    try:
        return schemes.get(name)
    except ModelError as error:
        return Refusal(str(error))


def _every_matrix(text: str) -> Scheme | Refusal:
    """chatglm.cpp's own ggml files: every matrix, embedding and head too, in one ggml type."""
    from modeldb import schemes

    try:
        stock = schemes.get(text)
    except ModelError as error:
        return Refusal(str(error))
    return replace(
        stock, id=f"{stock.id} everywhere", container="safetensors", mix="", weights=stock.id,
        embedding=stock.id, head=stock.id, source="chatglm.cpp convert.py: all matrices in one type",
    )  # fmt: skip


def unreadable(model: Model, scheme: Scheme) -> Refusal | None:
    """Why no file of this model exists in this scheme, or None."""
    from modeldb import gguf_layout

    if scheme.container != "gguf" or model.file_tensors:
        return None
    try:
        gguf_layout.architecture(model)
    except ModelError as error:
        return Refusal(str(error))
    return None


def llamacpp_file(model_name: str, label: str) -> tuple[Model, Scheme] | Refusal:
    """What a file for llama.cpp holds: the model of this name in the scheme that the label means."""
    held = model(model_name)
    if isinstance(held, Refusal):
        return held
    scheme = quant(label, "llama.cpp")
    if isinstance(scheme, Refusal):
        return scheme
    return unreadable(held, scheme) or (held, scheme)


def _gguf_scheme(text: str, model_id: str) -> str:
    name = str(labels.tables()["gguf_quants"].get(text, text))
    if model_id in labels.tables()["mxfp4_models"] and name not in ("MXFP4_MOE", "F16+MXFP4"):
        return "F16+MXFP4" if name in ("F16", "BF16", "F32") else "MXFP4_MOE"
    return name


def _tidy(label: str) -> str:
    """A label without remarks: `Q4_K - Medium` -> Q4_K_M, `IQ3_K - 3.4325 bpw` -> IQ3_K, `Q4_K_M?` ->
    Q4_K_M."""
    text = re.split(r"\s{3,}|\n", label.strip())[0]
    text = re.sub(r"\s*\((?!F16 non-experts|native)[^)]*\)", "", text)
    text = re.sub(r"[()?]", "", text)
    text = re.sub(r"^Q2_K\s+-\s+Medium$", "Q2_K", text)
    for word, tail in (("Medium", "_M"), ("Small", "_S"), ("Large", "_L")):
        text = re.sub(rf"\s+-\s+{word}$", tail, text)
    text = re.sub(r"\s+-\s+[\d.]+ bpw.*$", "", text)
    return text.strip()


def _other_scheme(text: str, kind: str, engine: str, model_id: str) -> str:
    """Scheme id of a label outside GGUF; where the label leaves the group size open, the engine's usual."""
    if kind == "mlx":
        return _mlx_scheme(text)
    if found := re.match(r"EXL[23] ([\d.]+) ?bpw", text, re.IGNORECASE):
        return f"exl2-{float(found.group(1)):g}bpw"
    data = labels.tables()
    base = data["other_quants"].get(text, text)
    if base == "fp8" and re.search(data["fp8_block_models"], model_id):
        return "fp8-block128x128"
    return str(data["engine_schemes"].get(engine, {}).get(base) or data["scheme_ids"].get(base, base))


def _mlx_scheme(text: str) -> str:
    """`MLX-4bit g32`, `4bit`, `MXFP4`, `BF16` -> mlx scheme ids (groups of 64 unless said otherwise)."""
    low = text.lower().removeprefix("mlx-")
    if found := re.match(r"(\d)-?bit(?: ?-?g(\d+))?", low):
        return f"mlx-{found.group(1)}bit-g{found.group(2) or 64}"
    if low in ("mxfp4", "nvfp4", "mxfp8"):
        return f"mlx-{low}"
    if low in ("int8", "q8_0", "q8"):
        return "mlx-8bit-g64"
    if low in ("int4", "q4_0", "q4_k_m", "q4"):
        return "mlx-4bit-g64"
    return labels.tables()["scheme_ids"].get(labels.tables()["other_quants"].get(text, text), low)


@lru_cache(maxsize=1024)
def host(note: str) -> tuple[Device | None, int | None, bool]:
    """The CPU beside an accelerator, its memory in bytes, and whether its bandwidth is assumed.

    Declared hosts (`hosts` in labels.yaml) are matched as patterns in the remark; otherwise the class of
    CPU that the remark suggests, else a desktop.
    """
    memory = re.search(r"([\d.]+) ?GB RAM", note)
    size = int(float(memory.group(1)) * 2**30) if memory else None
    for entry in labels.tables()["hosts"]:
        if re.search(entry["pattern"], note, re.IGNORECASE):
            if size is None and "memory_gb" in entry:
                size = int(entry["memory_gb"] * 2**30)
            found = Device(
                id=entry["id"],
                name=entry["name"],
                vendor=entry.get("vendor", ""),
                kind="cpu",
                memory_bytes=size,
                bandwidth_bytes_per_s=entry["bandwidth_gb_per_s"] * 1e9,
                fp32_flops=entry["fp32_tflops"] * 1e12,
                bf16_tensor_flops=entry.get("bf16_tensor_tflops", 0) * 1e12 or None,
                cpu_cores=entry.get("cores"),
                cpu_sockets=entry.get("sockets", 1),
                cpu_isa=tuple(entry.get("isa", ())),
                basis="assumed" if entry.get("assumed") else "datasheet",
                source=entry.get("source", ""),
            )
            return found, size, bool(entry.get("assumed"))
    return None, size, True


@lru_cache(maxsize=64)
def sockets(processor: Device, n: int) -> Device:
    """`n` sockets of a processor as one host."""
    if n <= 1 or processor.cpu_sockets > 1:
        return processor
    rates = (
        "bandwidth_bytes_per_s",
        "fp32_flops",
        "fp16_flops",
        "bf16_tensor_flops",
        "int8_ops",
        "cpu_cores",
    )
    whole = {name: value * n for name in rates if (value := getattr(processor, name))}
    return replace(processor, cpu_sockets=n, **whole)


@lru_cache(maxsize=1024)
def machine(accelerator: Device, n_devices: int, note: str = "") -> tuple[Machine, bool]:
    """`n_devices` of one device with the host its remark describes; whether that host is assumed."""
    if accelerator.kind == "cpu":
        own = re.search(r"([\d.]+) ?GB RAM", note)
        size = int(float(own.group(1)) * 2**30) if own else accelerator.memory_bytes
        return Machine(accelerator.name, (), accelerator, size, size), False
    beside, size, assumed = host(note)
    if accelerator.unified_memory:
        beside = replace(beside, memory_bytes=accelerator.memory_bytes) if beside else None
        size = accelerator.memory_bytes
    return Machine(accelerator.name, (accelerator,) * max(1, n_devices), beside, size), assumed
