"""The processor and the host's memory: /proc and /sys on Linux, `sysctl` on Macs, psutil elsewhere."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from hwdb.device import Device
from hwdb.system import System, origins

GIB = 1 << 30
UNLIMITED_BYTES = 1 << 60  # cgroup v1 writes "no limit" as a number near 2**63

# Flags of /proc/cpuinfo (x86 `flags`, Arm `Features`) that this project's names stand for.
ISA = (
    ("sse4_1", "sse4_1"),
    ("avx", "avx"),
    ("avx2", "avx2"),
    ("fma", "fma"),
    ("avx_vnni", "avx_vnni"),
    ("avx512f", "avx512"),
    ("avx512_vnni", "avx512_vnni"),
    ("avx512_bf16", "avx512_bf16"),
    ("amx_bf16", "amx_bf16"),
    ("amx_int8", "amx_int8"),
    ("amx_fp16", "amx_fp16"),
    ("asimd", "neon"),
    ("asimddp", "dotprod"),
    ("i8mm", "i8mm"),
    ("bf16", "bf16"),
    ("sve", "sve"),
    ("sve2", "sve2"),
)
# Processors with two full 512-bit pipes (`avx512_wide`), as (family, models) of /proc/cpuinfo: AMD Zen 5 but for its
# mobile dies (Strix Point 0x24, Krackan 0x60, 0x68), which pass 512 bits through 256 ("Software Optimization Guide for
# the AMD Zen5 Microarchitecture", 58455); Intel's servers from Ice Lake on. Of Skylake's and Cascade Lake's, those
# named Platinum and Gold 6 (Intel ARK, "# of AVX-512 FMA Units").
WIDE_AMD, NARROW_ZEN_5 = 26, (0x24, 0x60, 0x68)
WIDE_INTEL, SKYLAKE_SERVER = (0x6A, 0x6C, 0x8F, 0xCF, 0xAD, 0xAE), 0x55
# FP32 operations per core and cycle that every processor with the instruction set reaches: two 512-bit FMA pipes, two
# of 256 bits (or one of 512), a 256-bit multiply and add, a 128-bit multiply and add; two 128-bit NEON FMA pipes.
# (Intel and Arm optimisation guides.)
FLOP_PER_CYCLE = (("avx512_wide", 64), ("avx512", 32), ("fma", 32), ("avx", 16), ("sse4_1", 8), ("neon", 16))


@dataclass(frozen=True)
class Host:
    """The processor as read, the memory that this process may use, and remarks."""

    device: Device
    names: tuple[str, ...]
    memory_bytes: int | None
    free_bytes: int | None
    sockets: int
    notes: tuple[str, ...]


def probe(system: System) -> Host:
    """The host. What cannot be read is None; nothing here needs more than a user's rights."""
    cpuinfo = _cpuinfo(system)
    first = cpuinfo[0] if cpuinfo else {}
    name, names = _name(system, first)
    cores, sockets = _cores(system, cpuinfo)
    isa = _isa(system, first)
    quota = _cpu_quota(system)
    notes: list[str] = []
    if quota and cores and quota < cores:
        notes.append(f"the control group allows {quota:g} of {cores} cores")
        cores = max(1, math.floor(quota))
    total, free, capped = _memory(system)
    modules = _memory_modules(system)
    channels = modules.channels if modules else _edac_channels(system)
    speed = modules.mega_transfers if modules else None
    clock = _clock_hz(system, first, name)
    per_cycle = next(((flag, flop) for flag, flop in FLOP_PER_CYCLE if flag in isa), None)
    values: dict[str, Any] = {
        "cpu_cores": cores,
        "cpu_isa": isa or None,
        "memory_channels": channels,
        "memory_bytes": total,
        "memory_type": f"{modules.kind}-{speed}" if modules and speed else None,
        "l3_bytes": _l3_bytes(system),
        "boost_hz": clock,
    }
    told = list(origins("psutil" if not cpuinfo else "/proc, /sys", values))
    if channels and speed:
        width = modules.width_bits // 8 if modules else 8
        values["bandwidth_bytes_per_s"] = float(channels * speed * 1_000_000 * width)
        formula = f"{channels} channels x {speed} MT/s x {width} B, theoretical"
        told.append(("bandwidth_bytes_per_s", f"derived: {formula}"))
    if cores and clock and per_cycle:
        flag, flop = per_cycle
        values["fp32_flops"] = float(cores * flop * clock)
        formula = f"{cores} cores x {flop} FLOP/cycle ({flag}) x {clock / 1e9:.3g} GHz"
        told.append(("fp32_flops", f"derived: {formula}"))
    if capped:
        notes.append(f"the control group allows {total / GIB:.1f} GiB of memory" if total else "")
    nodes = len(system.glob("/sys/devices/system/node/node[0-9]*"))
    if nodes > 1:
        notes.append(f"{nodes} NUMA nodes")
    device = Device(
        id=re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "cpu",
        name=name,
        vendor=_vendor(first, name),
        kind="cpu",
        basis="assumed",
        source="detected",
        origins=tuple(told),
        **{field: value for field, value in values.items() if value is not None},
    )
    return Host(device, names, total, free, sockets, tuple(filter(None, notes)))


def _cpuinfo(system: System) -> list[dict[str, str]]:
    """One mapping per logical processor."""
    text = system.read("/proc/cpuinfo") or ""
    blocks = (re.findall(r"^([^:\n]+?)\s*:[ ]?(.*)$", block, re.MULTILINE) for block in text.split("\n\n"))
    return [dict(block) for block in blocks if any(name == "processor" for name, _ in block)]


def _name(system: System, first: dict[str, str]) -> tuple[str, tuple[str, ...]]:
    """The processor's name, and every name under which the catalogue may know it."""
    board = system.read("/proc/device-tree/model") or ""
    board = re.sub(r"\s+(Model|Rev)\b.*$", "", board.replace("\0", ""))
    brand = first.get("model name", "")
    if system.platform == "darwin":
        brand = (system.run(["sysctl", "-n", "machdep.cpu.brand_string"]) or "").strip()
    elif system.platform == "win32":
        path = r"HKLM\HARDWARE\DESCRIPTION\System\CentralProcessor\0"
        answer = system.run(["reg", "query", path, "/v", "ProcessorNameString"]) or ""
        found = re.search(r"ProcessorNameString\s+REG_SZ\s+(.+)", answer)
        brand = found[1].strip() if found else ""
    names = tuple(name for name in (brand, board) if name)
    return (names[0] if names else "CPU"), names


def _vendor(first: dict[str, str], name: str) -> str:
    known = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}
    return known.get(first.get("vendor_id", ""), "Apple" if name.startswith("Apple ") else "")


def _cores(system: System, cpuinfo: list[dict[str, str]]) -> tuple[int | None, int]:
    """Physical cores of all sockets, and the number of sockets."""
    if not cpuinfo:
        return system.physical_cores(), 1
    pairs = {(cpu.get("physical id"), cpu.get("core id")) for cpu in cpuinfo}
    sockets = len({cpu["physical id"] for cpu in cpuinfo if "physical id" in cpu})
    return (len(pairs) if sockets else len(cpuinfo)), max(1, sockets)


def _isa(system: System, first: dict[str, str]) -> tuple[str, ...]:
    if (
        system.platform == "darwin"
        and (system.run(["sysctl", "-n", "hw.optional.arm64"]) or "").strip() == "1"
    ):
        return ("neon", "dotprod")
    flags = set((first.get("flags") or first.get("Features") or "").split())
    found = tuple(name for flag, name in ISA if flag in flags)
    return (*found, "avx512_wide") if "avx512" in found and _is_wide(first) else found


def _is_wide(first: dict[str, str]) -> bool:
    """Whether this core does two products of 512-bit vectors in a cycle."""
    numbers = (first.get("cpu family", ""), first.get("model", ""))
    if not all(n.isdecimal() for n in numbers):
        return False
    family, model = map(int, numbers)
    if first.get("vendor_id") == "AuthenticAMD":
        return family == WIDE_AMD and model not in NARROW_ZEN_5
    if first.get("vendor_id") != "GenuineIntel" or family != 6:
        return False
    named = re.search(r"Platinum|Gold 6\d", first.get("model name", ""))
    return model in WIDE_INTEL or (model == SKYLAKE_SERVER and named is not None)


def _clock_hz(system: System, first: dict[str, str], name: str) -> float | None:
    """The base clock where it is told, else the highest, else the one at this moment."""
    base = system.number("/sys/devices/system/cpu/cpu0/cpufreq/base_frequency")
    highest = system.number("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    if base or highest:
        return float(base or highest or 0) * 1e3
    printed = re.search(r"@ ([\d.]+)\s?GHz", name)
    if printed:
        return float(printed[1]) * 1e9
    now = re.fullmatch(r"[\d.]+", first.get("cpu MHz", ""))
    return float(now[0]) * 1e6 if now else None


def _l3_bytes(system: System) -> int | None:
    """The L3 cache that the first core sees."""
    text = system.read("/sys/devices/system/cpu/cpu0/cache/index3/size") or ""
    match = re.fullmatch(r"(\d+)([KM])", text)
    return int(match[1]) * {"K": 1 << 10, "M": 1 << 20}[match[2]] if match else None


@dataclass(frozen=True)
class Modules:
    kind: str
    channels: int | None
    mega_transfers: int | None
    width_bits: int  # of one channel: 64 for DDR4 and DDR5 modules, 16 or 32 where LPDDR is listed by channel


def _memory_modules(system: System) -> Modules | None:
    """The memory modules that `dmidecode` lists (it usually needs root); None where it says nothing."""
    if system.platform != "linux":
        return None
    table = system.run(["dmidecode", "-t", "17"]) or ""
    fitted = []
    for block in table.split("Memory Device\n")[1:]:
        fields = dict(re.findall(r"^\t([^:\n]+): (.*)$", block, re.MULTILINE))
        if re.match(r"\d+ [GM]B", fields.get("Size", "")) and "DDR" in fields.get("Type", ""):
            fitted.append(fields)
    if not fitted:
        return None
    widths = (re.match(r"\d+", module.get("Data Width", "")) for module in fitted)
    speeds = [
        int(m[1]) for f in fitted if (m := re.match(r"(\d+) MT/s", f.get("Configured Memory Speed", "")))
    ]
    return Modules(
        kind=fitted[0]["Type"],
        channels=_channels(fitted),
        mega_transfers=min(speeds) if len(speeds) == len(fitted) else None,
        width_bits=min((int(width[0]) for width in widths if width), default=64),
    )


def _channels(fitted: list[dict[str, str]]) -> int | None:
    """Distinct channels that the modules' locators name; None where the board names none.

    Boards write `DIMM_A1`, `P0_Node0_Channel2_Dimm0`, `Controller1-ChannelA-DIMM0`, `P0 CHANNEL A`.
    """
    seen = set()
    for module in fitted:
        text = f"{module.get('Bank Locator', '')} {module.get('Locator', '')}"
        channel = re.search(r"channel[ _]?([0-9A-Z]+)", text, re.IGNORECASE)
        slot = re.search(r"DIMM[ _]?([A-Z])\d?\b", text)
        if not channel and not slot:
            return None
        controller = re.search(r"controller[ _]?(\d+)", text, re.IGNORECASE)
        socket = re.search(r"\b(?:P|CPU|Socket ?)(\d+)", text, re.IGNORECASE)
        which = channel[1] if channel else slot[1] if slot else ""
        seen.add((socket and socket[1], controller and controller[1], which.upper()))
    return len(seen)


def _edac_channels(system: System) -> int | None:
    """Distinct channels of populated slots, as the EDAC driver of ECC machines lists them."""
    seen = set()
    for file in system.glob("/sys/devices/system/edac/mc/mc*/*/dimm_location"):
        size = system.number(file.relative_to(system.root).parent / "size")
        channel = re.search(r"channel (\d+)", system.read(file.relative_to(system.root)) or "")
        if size and channel:
            seen.add((file.parent.parent.name, channel[1]))
    return len(seen) or None


def _memory(system: System) -> tuple[int | None, int | None, bool]:
    """Total and available bytes that this process may use, and whether a control group lowered them."""
    meminfo: dict[str, str] = dict(
        re.findall(r"^(\w+):\s+(\d+) kB$", system.read("/proc/meminfo") or "", re.MULTILINE)
    )
    if "MemTotal" in meminfo:
        total: int | None = int(meminfo["MemTotal"]) << 10
        free: int | None = int(meminfo.get("MemAvailable", meminfo.get("MemFree", "0"))) << 10
    else:
        total, free = system.memory() or (None, None)
    limit, used = _cgroup_memory(system)
    if limit is None or total is None or limit >= total:
        return total, free, False
    left = max(0, limit - (used or 0))
    return limit, min(free, left) if free is not None else left, True


def _groups(system: System, controller: str) -> list[str]:
    """Directories of this process's control group and its parents, v2 or v1, innermost first."""
    listed = re.findall(r"^\d+:([^:]*):(.*)$", system.read("/proc/self/cgroup") or "", re.MULTILINE)
    folders: list[str] = []
    for controllers, path in listed:
        if controllers == "":
            base = "/sys/fs/cgroup"
        elif controller in controllers.split(","):
            base = f"/sys/fs/cgroup/{controller}"
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        folders += ["/".join([base, *parts[:depth]]) for depth in range(len(parts), -1, -1)]
    return folders or ["/sys/fs/cgroup", f"/sys/fs/cgroup/{controller}"]


def _cpu_quota(system: System) -> float | None:
    """The smallest number of processors that a control group grants; None without a limit."""
    grants = []
    for folder in _groups(system, "cpu"):
        v2 = re.fullmatch(r"(\d+) (\d+)", system.read(f"{folder}/cpu.max") or "")
        quota = int(v2[1]) if v2 else system.number(f"{folder}/cpu.cfs_quota_us")
        period = int(v2[2]) if v2 else system.number(f"{folder}/cpu.cfs_period_us")
        if quota and quota > 0 and period:
            grants.append(quota / period)
    return min(grants, default=None)


def _cgroup_memory(system: System) -> tuple[int | None, int | None]:
    """The tightest memory limit among the control groups, and what is used under it."""
    limits = []
    for folder in _groups(system, "memory"):
        for limit_file, used_file in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit = system.number(f"{folder}/{limit_file}")
            if limit and limit < UNLIMITED_BYTES:
                limits.append((limit, system.number(f"{folder}/{used_file}")))
    return min(limits, key=lambda pair: pair[0], default=(None, None))
