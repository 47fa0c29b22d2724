"""`plan hw`: the devices as a list, one device with its sources, or this machine."""

from __future__ import annotations

from typing import Any

from planner import columns, report_json, units

ELSEWHERE = ("id", "name", "origins", "basis", "source", "source_date", "notes")  # on lines of their own
OF_PROCESSORS = ("cpu_sockets", "memory_nodes")


def rows() -> list[dict[str, Any]]:
    """Every device of the catalogue, with what is known of it."""
    from hwdb import catalogue

    return [report_json.device(d) for d in catalogue.load().devices]


def device(name: str) -> dict[str, Any]:
    """One device. Errors: UnknownDevice, AmbiguousDevice."""
    from hwdb import catalogue

    known = catalogue.load()
    found = known.resolve(name)
    return report_json.device(found) | {"aliases": list(known.aliases(found.id))}


def detected() -> dict[str, Any]:
    """This machine, each number with its origin."""
    from hwdb.detect import detect

    return report_json.machine(detect())


def text(found: list[dict[str, Any]], person: bool) -> str:
    """A table, one line per device."""
    table = [("id", "kind", "memory", "bandwidth", "fp16", "year", "name")]
    for row in found:
        table.append(
            (
                row["id"], row["kind"],
                units.format_bytes(row["memory_bytes"]) if "memory_bytes" in row else "-",
                _bandwidth(row),
                _flops(row),
                str(row.get("release_year", "-")), row["name"],
            )
        )  # fmt: skip
    return columns.aligned(table, person)


def _bandwidth(row: dict[str, Any]) -> str:
    rate = row.get("bandwidth_bytes_per_s")
    return f"{rate / 1e9:.0f} GB/s" if rate else "-"


def _flops(row: dict[str, Any]) -> str:
    rate = row.get("fp16_tensor_flops") or row.get("fp16_flops")
    return f"{rate / 1e12:.0f} TFLOPS" if rate else "-"


def device_text(row: dict[str, Any]) -> str:
    """Every known number of a device on a line of its own, with where it comes from."""
    origins = dict(row.get("origins", ()))
    basis = f"{row.get('basis', '')}: {row.get('source', '')}".strip(": ")
    lines = [row["name"], f"  {'id':<26} {row['id']}"]
    for key, value in row.items():
        if key in ELSEWHERE or (key in OF_PROCESSORS and row["kind"] != "cpu"):
            continue
        origin = f"  [{origins[key]}]" if key in origins else ""
        lines.append(f"  {key:<26} {_value(key, value)}{origin}")
    lines.append(f"  source: {basis}{', ' + row['source_date'] if row.get('source_date') else ''}")
    if row.get("notes"):
        lines.append(f"  note: {row['notes']}")
    return "\n".join(lines)


def _value(key: str, value: Any) -> str:
    if key == "thread_bandwidths":
        return ", ".join(f"{units.counted(n, 'thread')} {_value('bytes_per_s', rate)}" for n, rate in value)
    if key == "formats":  # of kernels: decode's stream and a prompt's products
        return ", ".join(f"{f} {_value('bytes_per_s', r)} {_value('_flops', p)}" for f, r, p in value)
    if isinstance(value, dict):
        return ", ".join(f"{k} {_value(k, v)}" for k, v in value.items() if v is not None)
    if isinstance(value, list | tuple):
        return ", ".join(_value(key, item) for item in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if key.endswith("bytes_per_s"):
        return f"{value / 1e9:.4g} GB/s"
    if key.endswith("_bytes"):
        return units.format_bytes(value)
    if key.endswith("_flops"):
        return f"{value / 1e12:.4g} TFLOP/s"
    if key.endswith("_ops"):
        return f"{value / 1e12:.4g} TOP/s"
    if key.endswith("_hz"):
        return f"{value / 1e9:.3g} GHz"
    if key.endswith("_s"):
        return units.format_seconds(value)
    return f"{value:g}"


def machine_text(found: dict[str, Any]) -> str:
    """The machine: its devices, its host, what is free, and what the probes noted."""
    lines = [f"{found['name']} ({found['operating_system'] or 'unknown system'})"]
    free = found["free_bytes"]
    for i, d in enumerate(found["devices"]):
        lines += device_text(d).split("\n")
        if i < len(free):
            lines.append(f"  {'free now':<26} {units.format_bytes(free[i])}")
    if found["host"]:
        lines += device_text(found["host"]).split("\n")
    for key in ("host_memory_bytes", "host_free_bytes"):
        if found[key]:
            lines.append(f"  {key:<26} {units.format_bytes(found[key])}")
    lines += [f"note: {note}" for note in found["notes"]]
    return "\n".join(lines)
