"""Which unit of a device an engine's kernels run on, and its peak: tensor cores, packed integers or
vectors."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from estimators.cpu_kernels import attention_gain, integer_gain, kernels
from estimators.formats import SIXTEEN_BIT
from estimators.power import sustained_share
from hwdb.device import Device

#: FP32 operations per second of one Apple GPU core at its clock (M1: 2.6 TFLOPS over 8 cores), where a
#: chip's total is not in the catalogue.
APPLE_CORE_FLOPS = 0.33e12


@dataclass(frozen=True, slots=True)
class Peaks:
    """Operations per second: `matrix` for products of matrices, `vector` for unpacking and small products,
    `attention` for attention. `expanded_bytes` per weight: what packed weights are expanded to before products of
    matrices, 0 where kernels read them packed."""

    matrix: float
    vector: float
    attention: float
    expanded_bytes: float = 0.0


#: Matrix units in the GPU cores, as a multiple of the FP32 rate: M5 has "over 4x the peak GPU compute for AI"
#: of M4 (Apple newsroom, 2025-10-15).
APPLE_MATRIX = {"apple-m5": 4.0}


CPU_FAMILIES = {
    "intel": "cpu-x86", "amd": "cpu-x86", "spacemit": "cpu-riscv", "eswin": "cpu-riscv", "apple": "cpu-apple",
}  # fmt: skip


def family(device: Device) -> str:
    """The group of devices whose kernels behave alike: `ampere`, `ampere-dc`, `rdna3`, `apple-m1`, `zen-4`
    ..."""
    text = f"{device.id} {device.name}".lower()
    architecture = device.architecture.lower()
    if device.kind == "cpu":
        return CPU_FAMILIES.get(device.vendor.lower(), "cpu-arm")
    if found := re.match(r"apple-(m\d+)", device.id):
        return f"apple-{found.group(1)}"
    if device.vendor.lower() == "nvidia":
        return _nvidia(device, architecture)
    if architecture.startswith("rdna"):
        return architecture.replace(" ", "")
    if re.match(r"gcn|vega", architecture):
        return "gcn"
    if architecture.startswith("xe"):
        return "xe-hpc" if "max" in text or "hpc" in architecture else "xe"
    return architecture.replace(" ", "-") or device.vendor.lower()


def tier(device: Device) -> str:
    """Kind of memory system, for which kernels are tuned or not: `hbm`, `gddr`, `unified` with a host,
    `host`."""
    if device.kind == "cpu":
        return "host"
    if device.unified_memory or device.integrated:
        return "unified"
    return "hbm" if "hbm" in device.memory_type.lower() else "gddr"


def _nvidia(device: Device, architecture: str) -> str:
    number = re.search(r"sm_(\d+)", device.capability)
    capability = int(number.group(1)) if number else 0
    known = {
        52: "maxwell", 60: "pascal-dc", 61: "pascal", 62: "pascal", 70: "volta", 72: "volta", 75: "turing",
        80: "ampere-dc", 86: "ampere", 87: "ampere-soc", 89: "ada", 90: "hopper", 100: "blackwell-dc",
        103: "blackwell-dc", 120: "blackwell", 121: "blackwell-soc", 110: "blackwell-soc",
        101: "blackwell-soc",
    }  # fmt: skip
    return known.get(capability, architecture.split(" ")[0] or "nvidia")


#: T-MAC multiplies by looking up sums of four one-bit weights: its work is proportional to the bits of a weight,
#: and equals that of vector kernels at LOOKUP_BITS of them (t-mac-docs: 1.5-2.4 times llama.cpp at 4 bits, 2.5-5.5
#: at 2 bits, one thread, three processors).
LOOKUP_BITS = 8.0
LOOKUP_WIDTH = {"ternary": 2.0, "k2": 2.0, "q4_0": 4.0, "k4": 4.0}


#: Classes whose weights are expanded to 16-bit floats before the product.
EXPANDED = frozenset({"fp8", "nvfp4", "awq", "gptq4", "gptq8", "nf4", "int4", "exl"})


def _cpu(
    device: Device,
    vector: float,
    format_class: str,
    cores_share: float,
    engine: str,
    lineage: str,
    year: float,
    flash: bool,
) -> Peaks:
    """A CPU multiplies quantized weights as 8-bit integers (`cpu_kernels`), 16-bit ones as FP32 but for BF16's
    own products and NEON's FP16; engines beside llama.cpp's kin use matrix tiles (AMX) for BF16 and what they
    expand to it. Packed weights met by one vector are unpacked in 256-bit vectors
    at most."""
    isa = device.cpu_isa
    kind = kernels(engine, "cpu", format_class, isa, year)
    kin = lineage == "ggml" or engine == "ktransformers"  # its tiles: `host.tile_gain`
    pairs = vector * (2.0 if {"avx512_bf16", "bf16"} & set(isa) or not isa else 1.0)
    if format_class == "f16" and "neon" in isa and kind != "tiles":
        fast = 2.0 * vector
    elif format_class in ("f32", "f16"):
        fast = vector
    elif format_class == "bf16" or format_class in EXPANDED:
        fast = pairs if kin else device.bf16_tensor_flops or pairs
    else:
        fast = integer_gain(kind, isa) * vector if isa else 4.0 * vector
    packed = format_class not in SIXTEEN_BIT
    halved = packed and ("avx512_wide" in isa or ("neon" in isa and "dotprod" not in isa))
    plain = vector * (0.5 if halved else 1.0)
    attended = vector * attention_gain(engine, year, flash)
    return Peaks(fast * cores_share, plain * cores_share, attended * cores_share)


#: Operations per second of unpacking where there is nothing to unpack.
NOTHING_TO_UNPACK = 1e30
#: Newer than any build measured.
LATEST = 2026.9
#: llama.cpp multiplies quantized weights on the matrix units of RDNA 3 and 4 since November 2025 (ggml-org/
#: llama.cpp#17156, #17576); before, it expanded them to FP16 and left the product to rocBLAS.
WMMA_YEAR = 2025.85
#: Their flash attention uses those units since January 2026 (#18481), or when built with rocWMMA (#12032).
WMMA_ATTENTION_YEAR = 2026.05
#: Families for which rocBLAS by itself (hipBLASLt off) has no kernels on matrix units: a Radeon AI PRO R9700
#: multiplies BF16 at 10 TFLOPS without hipBLASLt and at 74 with it (kyuz0-toolboxes).
UNTUNED = ("rdna3.5", "rdna4")
#: AMD families whose quantized products are dot products of four 8-bit integers (DP4A), not matrix units.
DOT_PRODUCTS = ("gcn", "rdna1", "rdna2")


#: llama.cpp multiplies packed weights on the INT8 units of NVIDIA's tensor cores since June 2024 (ggml-org/llama.cpp
#: #7824, #8062). Before, and on Volta still, it expands them to FP16 and leaves the product to cuBLAS; cards without
#: tensor cores multiply by DP4A, or, older than that, expand to what they compute in.
MMQ_YEAR = 2024.46


def _expanded_bytes(group: str, year: float) -> float:
    """Bytes per weight that packed weights are expanded to before a product of matrices on CUDA; 0 where kernels
    read them packed."""
    if group in ("kepler", "maxwell"):
        return 4.0
    if group in ("pascal-dc", "volta"):
        return 2.0
    return 2.0 if year < MMQ_YEAR and group != "pascal" else 0.0


#: Vector operations beside one INT8 operation of a product on tensor cores: sums of 32 products become floats and
#: are multiplied by the scales of both sides (some four instructions for 64 operations, two operations each).
RESCALING = 0.125


def _rescaled(int8: float, vector: float) -> float:
    """Operations per second of products of packed weights whose partial sums the vector units rescale."""
    return 1.0 / (1.0 / int8 + RESCALING / vector)


#: llama.cpp's Vulkan backend multiplies packed weights by dot products of four 8-bit integers where a device has them
#: and no matrix units that the backend uses: legacy formats since April 2025 (ggml-org/llama.cpp#12135), K-quants and
#: MXFP4 since October (#16536). They are issued at the rate of FP32 products.
INTEGER_DOTS, INTEGER_DOTS_YEAR = 4.0, dict.fromkeys(("q4_0", "q5_0", "q5_1", "q8"), 2025.28)
INTEGER_DOTS_K_YEAR = 2025.83


def _before_xe2(device: Device, group: str) -> bool:
    """Whether this is a GPU of Intel's whose matrix units llama.cpp's Vulkan backend leaves alone: it uses Xe2's."""
    return group == "xe" and not device.architecture.lower().startswith("xe2")


def _integer_dots(device: Device, group: str, format_class: str, year: float) -> bool:
    """Whether llama.cpp's Vulkan shaders multiply weights of this class as 8-bit integers on this device."""
    dotted = (
        group in ("pascal", "rdna2")
        or _before_xe2(device, group)
        or (group == "gcn" and bool(device.int8_ops))
    )
    since = INTEGER_DOTS_YEAR.get(format_class, INTEGER_DOTS_K_YEAR)
    return dotted and not format_class.startswith("iq") and year >= since


def _ggml(
    device: Device,
    group: str,
    backend: str,
    format_class: str,
    half: float,
    vector: float,
    year: float,
    toolchain: str,
) -> Peaks:
    """The units that llama.cpp's GPU kernels run on (ggml_cuda_should_use_mmq; ggml-vulkan, ggml-sycl)."""
    packed = format_class not in SIXTEEN_BIT
    fast = device.fp16_acc16_flops or half
    if backend == "cuda":
        if format_class == "bf16":  # accumulates in FP32; cards without BF16 units expand it
            return Peaks(device.bf16_tensor_flops or vector, vector, fast)
        wide = _expanded_bytes(group, year) if packed else 0.0
        if not packed or wide:
            return Peaks(fast, vector, fast, wide)
        return Peaks(_rescaled(device.int8_ops or half, vector), vector, fast)
    if backend == "rocm":
        if group in DOT_PRODUCTS:
            return Peaks(device.int8_ops or half if packed else half, vector, half)
        library = not packed or year < WMMA_YEAR
        untuned = "rocblas" in toolchain and group in UNTUNED
        tiled = group.startswith("rdna") and year < WMMA_ATTENTION_YEAR and "rocwmma" not in toolchain
        wide = 2.0 if packed and library else 0.0
        return Peaks(vector if library and untuned else half, vector, vector if tiled else half, wide)
    if backend == "vulkan" and _before_xe2(device, group):
        half = fast = 2.0 * vector  # packed FP16
    if backend == "vulkan" and packed and _integer_dots(device, group, format_class, year):
        return Peaks(_rescaled(INTEGER_DOTS * vector, vector), vector, half)
    if format_class == "bf16" and device.vendor.lower() != "nvidia":  # no BF16 shaders for matrix units
        return Peaks(vector, vector, half)
    return Peaks(fast if backend == "vulkan" else half, vector, half)


def peaks(
    device: Device,
    lineage: str,
    backend: str,
    format_class: str,
    cores_share: float = 1.0,
    engine: str = "",
    year: float = LATEST,
    toolchain: str = "",
    flash: bool = True,
) -> Peaks | None:
    """The peaks that bound these kernels, or None where the catalogue knows no rate of this device.

    llama.cpp multiplies quantized weights as 8-bit integers (MMQ: tensor cores or DP4A) on CUDA and older AMD
    cards, at the rate of FP16 elsewhere (`_ggml`); other engines expand 4-bit weights to FP16, and use FP8,
    INT8 or FP4 units where the format and the device have them. `cores_share` scales a CPU to the threads in
    use; `year` dates the build, `toolchain` says what it was built with. NVIDIA's cards are slowed by their
    power limits (`estimators.power`).
    """
    vector = device.fp32_flops or device.fp16_flops
    half = device.fp16_tensor_flops or device.bf16_tensor_flops
    if half is None:
        half = max(filter(None, (device.fp16_flops, device.fp32_flops)), default=None)
    if device.id.startswith("apple") and vector is None and device.compute_units:
        vector = half = device.compute_units * APPLE_CORE_FLOPS
    if half is None and vector is None:
        return None
    half = half or vector or 0.0
    vector = vector or half / 8
    if backend == "cpu" and lineage == "runner" and device.int8_ops:  # as `plan measure` found them
        fast = vector if format_class in SIXTEEN_BIT else device.int8_ops
        return Peaks(fast * cores_share, vector * cores_share, vector * cores_share)
    if backend == "cpu":
        found = _cpu(device, vector, format_class, cores_share, engine, lineage, year, flash)
        looked_up = LOOKUP_BITS / LOOKUP_WIDTH.get(format_class, LOOKUP_BITS) if engine == "t-mac" else 1.0
        return Peaks(found.matrix, found.vector * looked_up, found.attention)
    group = family(device)
    if backend == "metal":
        fast = vector * APPLE_MATRIX.get(group, 1.0)
        return Peaks(fast, vector, fast if lineage == "mlx" else vector)
    if lineage == "ggml":
        found = _ggml(device, group, backend, format_class, half, vector, year, toolchain)
    else:
        found = _served(device, lineage, format_class, half, vector)
    share = sustained_share(device, group) if backend == "cuda" else 1.0
    return replace(found, matrix=found.matrix * share, attention=found.attention * share)


def _served(device: Device, lineage: str, format_class: str, half: float, vector: float) -> Peaks:
    """The units that other engines' kernels run on. Weights in a format that these multiply are not unpacked, and
    kernels of serving engines unpack the others while memory delivers and units multiply (Marlin, arXiv 2408.11743).
    """
    fast = {
        "fp8": device.fp8_flops,
        "nvfp4": device.fp4_flops or device.fp8_flops,
        "mxfp4": device.fp8_flops if device.fp4_flops else None,  # with 8-bit activations, at their rate
        "int8": device.int8_ops,
        "f32": vector,
    }.get(format_class)
    hidden = lineage == "graph" or fast is not None or format_class in SIXTEEN_BIT
    return Peaks(fast or half, NOTHING_TO_UNPACK if hidden else vector, half)
