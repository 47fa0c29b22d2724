"""Files of measurements: which layout, which rows, and what each row asks.

Six layouts are recognised by the columns they must have, in any order and among any others: speed, memory,
serving, llamacpp (llama.cpp's own memory figures), boundary (the largest batch that fitted) and tensors (of a
GGUF file, by type). A record keeps its original text, so that whatever else it holds is written back byte for
byte.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from planner import row_capacity, row_memory, row_serving, row_speed
from planner.asks import Ask, Refusal
from planner.errors import EnvironmentFailed, UsageError

Layout = Literal["speed", "memory", "serving", "llamacpp", "boundary", "tensors"]

#: Columns that a layout cannot do without, and those that may be missing (read as blank). The first layout
#: whose needs are met is taken; the needs of no two are met by one file of the shared ones.
AS_CSV = "save it as CSV in UTF-8, one header line above the rows"
NEEDS: dict[Layout, frozenset[str]] = {
    "llamacpp": frozenset({"model_canonical", "scheme", "ctx", "kv_type_k", "kv_type_v", "n_ubatch"}),
    "serving": frozenset({"engine", "model_canonical", "isl", "osl", "mode"}),
    "speed": frozenset({"engine", "model_canonical", "quant", "metric", "input_tokens"}),
    "memory": frozenset({"engine", "model_canonical", "quant", "metric", "context"}),
    "boundary": frozenset({"system", "model", "tp", "isl", "osl", "free_gpu_fraction"}),
    "tensors": frozenset({"model_canonical", "scheme", "ggml_type"}),
}
READS: dict[Layout, tuple[str, ...]] = {
    "llamacpp": (
        "model_canonical", "scheme", "ctx", "kv_type_k", "kv_type_v", "flash_attn", "n_batch", "n_ubatch",
        "n_seq", "kv_unified", "swa_full", "n_outputs_max",
    ),
    "serving": (
        "id", "source_ref", "engine", "engine_version", "model_canonical", "system", "hardware_canonical",
        "precision", "mode", "isl", "osl", "gemm_quant_mode", "moe_quant_mode", "batch_size", "tp_size",
        "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size", "prefill_batch_size",
        "prefill_num_workers", "prefill_tp_size", "prefill_pp_size", "prefill_attention_dp_size",
        "prefill_moe_tp_size", "prefill_moe_ep_size", "decode_batch_size", "decode_num_workers",
        "decode_tp_size", "decode_pp_size", "decode_attention_dp_size", "decode_moe_tp_size",
        "decode_moe_ep_size",
    ),
    "speed": (
        "source", "date_if_known", "hardware", "hardware_canonical", "n_devices", "host_note", "engine",
        "engine_version_or_build", "backend", "model", "model_canonical", "params_b", "quant",
        "weights_gib_if_reported", "n_gpu_layers", "threads", "flash_attn", "kv_type",
        "batch_or_concurrency", "input_tokens", "output_tokens", "depth", "metric", "notes",
    ),
    "memory": (
        "source", "hardware_canonical", "engine", "model", "model_canonical", "quant", "context", "kv_type",
        "batch", "metric", "notes",
    ),
    "boundary": ("system", "model", "tp", "isl", "osl", "free_gpu_fraction"),
    "tensors": ("model_canonical", "scheme", "ggml_type"),
}  # fmt: skip

#: Measured columns of each layout; no prediction reads them.
MEASURED: dict[Layout, tuple[str, ...]] = {
    "llamacpp": ("model_bytes", "kv_bytes", "compute_bytes", "file_bytes"),
    "serving": ("ttft_ms", "tpot_ms"),
    "speed": ("value",),
    "memory": ("value",),
    "boundary": ("max_batch_measured",),
    "tensors": ("n_tensors", "n_elements", "bytes"),
}

#: A single record longer than this is a broken quote, not data.
MAX_RECORD = 4 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a file: its number (the header is 1), its text without the line end, and its fields by
    column."""

    line: int
    text: str
    fields: dict[str, str]


@dataclass(frozen=True)
class File:
    """A file of measurements. `newline` is its line end, `bom` whether it starts with a byte order mark."""

    path: Path
    layout: Layout
    columns: tuple[str, ...]
    header: str
    records: tuple[Record, ...]
    newline: str = "\n"
    bom: bool = False


def layout(columns: tuple[str, ...]) -> Layout | None:
    """The layout whose needs these columns meet."""
    have = frozenset(columns)
    for name, needs in NEEDS.items():
        if needs <= have:
            return name
    return None


def read(path: str | Path) -> File:
    """The file, recognised by its columns.

    Raises:
        EnvironmentFailed: it cannot be read.
        UsageError: it is not CSV, or not in a known layout, or a row has the wrong number of fields.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise EnvironmentFailed(
            f"cannot read {path}: {error.strerror or error}", "check the path and its permissions"
        ) from None
    bom = raw.startswith(b"\xef\xbb\xbf")
    try:
        text = raw[3 if bom else 0 :].decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start})", AS_CSV) from None
    newline = "\r\n" if "\r\n" in text[:65536] else "\n"
    pieces = list(split(text, path))
    if not pieces:
        raise UsageError(f"{path} is empty", AS_CSV)
    columns = tuple(column.strip() for column in fields(pieces[0][1], path, 1))
    found = layout(columns)
    if found is None:
        raise UsageError(
            f"{path} is in no known layout: its columns meet none of "
            + "; ".join(f"{name} ({', '.join(sorted(needs))})" for name, needs in NEEDS.items()),
            "name the columns of one of them so",
        )
    repeated = sorted({c for c in columns if columns.count(c) > 1 and c in READS[found]})
    if repeated:
        raise UsageError(f"{path} has the column `{repeated[0]}` twice", "rename or remove one")
    blank = dict.fromkeys(READS[found], "")
    records = []
    for line, record in pieces[1:]:
        values = fields(record, path, line)
        if len(values) != len(columns):
            raise UsageError(
                f"{path}:{line} has {len(values)} fields where the header has {len(columns)}", AS_CSV
            )
        records.append(Record(line, record, {**blank, **dict(zip(columns, values, strict=True))}))
    return File(path, found, columns, pieces[0][1], tuple(records), newline, bom)


def split(text: str, path: Path) -> Iterator[tuple[int, str]]:
    """(line number, record text) for each record; a quoted field may hold line ends. Blank lines are
    skipped."""
    lines = text.split("\n")
    start, buffer = 1, ""
    for number, line in enumerate(lines, 1):
        buffer = f"{buffer}\n{line}" if buffer else line
        if buffer.count('"') % 2 == 0:
            record = buffer.removesuffix("\r")
            if record.strip():
                yield start, record
            buffer, start = "", number + 1
        elif len(buffer) > MAX_RECORD:
            break
    if buffer.strip():
        raise UsageError(f"{path}:{start} opens a quote that never closes", AS_CSV)


def fields(record: str, path: Path, line: int) -> list[str]:
    """The fields of one record."""
    if '"' not in record:
        return record.split(",")
    try:
        return next(csv.reader([record], strict=True))
    except csv.Error as error:
        raise UsageError(f"{path}:{line} is not CSV: {error}", AS_CSV) from None


def ask(record: Record, kind: Layout) -> Ask | Refusal:
    """What one record asks. Never raises for a row that cannot be priced: that is a Refusal."""
    interpret = {
        "speed": row_speed.ask,
        "memory": row_memory.ask,
        "serving": row_serving.ask,
        "llamacpp": row_memory.ask_llamacpp,
        "boundary": row_capacity.ask_boundary,
        "tensors": row_capacity.ask_tensors,
    }[kind]
    try:
        return interpret(record.fields)
    except (ValueError, OverflowError) as error:
        return Refusal(str(error).split("\n")[0] or type(error).__name__)
