"""Labels of quantizations outside GGUF, read word by word: `AWQ INT4 (GEMM)`, `GPTQ-4bit-128g-actorder`,
`q4f16_1`, `4.0bpw`, `FP8 dynamic`.

Each word must be known, or the label is not read at all: nothing is guessed from a likeness.
"""

from __future__ import annotations

import re

#: Words that name a kernel or a detail and leave the stored bits as they are.
ASIDE = frozenset({
    "gemm", "gemv", "fast", "marlin", "machete", "exllama", "exllamav2", "triton", "cutlass", "dynamic", "static",
    "token", "tensor", "per", "channel", "act", "order", "actorder", "desc", "sym", "asym", "symmetric", "woq",
    "weight", "weights", "only", "quantized", "quantization", "online", "native", "kernel", "sq", "smoothquant",
    "eetq", "instruct", "hf", "model", "kv", "fp16kv", "dq", "mlx", "mlc", "exl2", "exl",
})  # fmt: skip
WIDTHS = {
    "int4": 4, "i4": 4, "w4a16": 4, "w4": 4, "4bit": 4, "u4": 4, "w4a8": 4,
    "int8": 8, "i8": 8, "w8a8": 8, "w8a16": 8, "w8": 8, "8bit": 8, "int3": 3, "3bit": 3, "w3a16": 3,
}  # fmt: skip
METHODS = {"awq": "awq", "autoawq": "awq", "gptq": "gptq", "gptqmodel": "gptq", "autogptq": "gptq"}
BITSANDBYTES = frozenset({"bnb", "bitsandbytes"})
FLOATS = {
    "bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16", "f16": "fp16", "float16": "fp16", "half": "fp16",
    "fp32": "fp32", "f32": "fp32", "float32": "fp32", "fp8": "fp8", "e4m3": "fp8", "float8": "fp8",
    "nvfp4": "nvfp4", "fp4": "nvfp4", "mxfp4": "mxfp4", "nf4": "bnb-nf4",
}  # fmt: skip


def read(label: str) -> str | None:
    """A key of `other_quants` or `scheme_ids` in labels.yaml, an id such as `gptq-4bit-g32` or
    `exl2-4bpw`, or None where a word is unknown or words contradict each other."""
    low = label.lower()
    if found := re.fullmatch(r"\s*(?:exl[23][ -]*)?([\d.]+) ?bpw\s*", low):
        return f"exl2-{float(found.group(1)):g}bpw"
    if found := re.fullmatch(r"q([0348])f(16|32)(?:_\w+)?", low):  # MLC: bits of weights, type of the rest
        return {"3": "int3", "4": "int4", "8": "int8"}.get(found.group(1), f"fp{found.group(2)}")
    low = re.sub(r"(\d)-bit", r"\1bit", low)
    low = re.sub(r"\b(\d+)g\b", r"g\1", low)
    words = [w for w in re.split(r"[^a-z0-9]+", low) if w]
    group = [w for w in words if re.fullmatch(r"g\d+", w)]
    rest = [w for w in words if w not in group and w not in ASIDE]
    return _meaning(rest, group[0] if group else "")


def aside(label: str) -> bool:
    """Whether a label names only a kernel or a detail (`GEMM`), and no stored bits."""
    words = [w for w in re.split(r"[^a-z0-9]+", label.lower()) if w]
    return bool(words) and set(words) <= ASIDE


def _meaning(words: list[str], group: str) -> str | None:
    methods = {METHODS[w] for w in words if w in METHODS}
    widths = {WIDTHS[w] for w in words if w in WIDTHS}
    floats = {FLOATS[w] for w in words if w in FLOATS}
    bits_and_bytes = bool(BITSANDBYTES & set(words))
    known = METHODS.keys() | WIDTHS.keys() | FLOATS.keys() | BITSANDBYTES
    if (
        set(words) - known
        or max(len(methods), len(widths), len(floats)) > 1
        or (floats and (methods or widths))
    ):
        return None
    width = next(iter(widths), 4)
    if floats:
        kind = next(iter(floats))
        return f"bnb-{kind}" if bits_and_bytes and kind == "fp4" else kind
    if bits_and_bytes:
        return "bnb-int8" if width == 8 else "bnb-nf4"
    if methods or (widths and group):
        return f"{next(iter(methods), 'gptq')}-{width}bit" + (f"-{group}" if group else "")
    return f"int{width}" if widths else None
