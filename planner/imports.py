"""Files that benchmark tools write -> measurements: what was asked of the machine, and what it answered.

The tool is recognised by what its file holds, never by its name. Each tool has a module that turns its
records into the fields of a row of speed.csv (`Draft`); what those fields mean is decided in one place,
`planner.row_speed`. Keys nobody knows are passed over and missing ones tolerated; a record that cannot be
compared says why.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hwdb.device import Device
from planner import import_guidellm, import_llama_bench, import_sglang_bench, import_vllm_bench, labels, rows
from planner.asks import Ask, Refusal
from planner.drafts import Draft, Hints
from planner.errors import EnvironmentFailed, UsageError

LARGEST = 256 << 20  # bytes of a file of measurements
HELP = "plan calibrate --help names the tools whose files are read"

#: Why a flag of a row keeps it from calibrating.
UNFIT = {
    "speculative": "speculative decoding: its rate is not that of the model",
    "offloaded": "part of the model is in host memory: which processor was slow cannot be told",
    "spilled": "the model does not fit the device: an unknown part ran in host memory",
    "assumed-lengths": "it does not say how long prompt and answer were",
    "disaggregated": "prefill and decode ran on different workers",
}


@dataclass(frozen=True)
class Measured:
    """One row: `value` in the units of `ask.metric`; `samples` as recorded, else `deviation` of single runs.
    `settings` is everything but the value: rows are repeats only where it is equal."""

    where: str
    label: str
    ask: Ask
    value: float
    samples: tuple[float, ...] = ()
    deviation: float | None = None
    date: str = ""
    settings: str = ""
    notes: tuple[str, ...] = ()

    @property
    def noise(self) -> float:
        """Standard deviation of log(value) that the row's own samples leave."""
        import numpy as np

        if len(self.samples) > 1:
            spread, count = float(np.std(self.samples, ddof=1)), len(self.samples)
        else:
            spread, count = self.deviation or 0.0, 1
        return spread / self.value / float(np.sqrt(count))


@dataclass(frozen=True)
class Imported:
    """A file's measurements, and (where, why) of the records that cannot be used."""

    path: Path
    tool: str
    sha256: str
    rows: tuple[Measured, ...]
    refused: tuple[tuple[str, str], ...] = field(default=())


def read(path: str | Path, hints: Hints | None = None) -> Imported:
    """Every measurement of a file. Errors: EnvironmentFailed (not readable), UsageError (not a file of a
    known tool, broken, or nothing says on which device it was measured)."""
    path, hints = Path(path), hints or Hints()
    try:
        if path.stat().st_size > LARGEST:
            raise UsageError(f"{path} is larger than {LARGEST >> 20} MiB: not a file of measurements", HELP)
        raw = path.read_bytes()
    except OSError as error:
        raise EnvironmentFailed(
            f"cannot read {path}: {error.strerror or error}", "check the path and its permissions"
        ) from None
    tool, drafts = _drafts(path, raw, hints)
    kept: list[Measured] = []
    refused: list[tuple[str, str]] = []
    for draft in drafts:
        found = measured(draft)
        if isinstance(found, Refusal):
            refused.append((draft.where, found.reason))
        else:
            kept.append(found)
    if not kept and not refused:
        raise UsageError(f"{path} holds no measurement", HELP)
    return Imported(path, tool, hashlib.sha256(raw).hexdigest(), tuple(kept), tuple(refused))


def _drafts(path: Path, raw: bytes, hints: Hints) -> tuple[str, list[Draft]]:
    """(tool, its records), for whichever tool recognises the content."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start})", HELP) from None
    if not text.strip():
        raise UsageError(f"{path} is empty", HELP)
    documents = _documents(path, text)
    if documents is None:
        if import_llama_bench.is_markdown(text):
            return "llama-bench", import_llama_bench.from_markdown(text, hints)
        if import_llama_bench.is_csv(text):
            return "llama-bench", import_llama_bench.from_csv(text, hints)
        return "csv", _from_layout(path)
    for tool, module in TOOLS:
        if module.recognises(documents):
            return tool, module.read(documents, hints)
    raise UsageError(
        f"{path} is JSON of no known tool",
        "known: llama-bench -o json, vllm bench serve --save-result, sglang bench_serving, guidellm",
    )


TOOLS: tuple[tuple[str, Any], ...] = (
    ("llama-bench", import_llama_bench),
    ("guidellm", import_guidellm),
    ("sglang bench_serving", import_sglang_bench),
    ("vllm bench serve", import_vllm_bench),
)


def _documents(path: Path, text: str) -> list[Any] | None:
    """The objects of a JSON or JSON-lines file; None where the text is neither. One clear line where it
    breaks."""
    start = text.lstrip()[:1]
    if start not in "{[":
        return None
    try:
        whole = json.loads(text)
    except RecursionError:
        raise UsageError(f"{path} nests too deeply to be a file of measurements", HELP) from None
    except ValueError as error:
        lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
        if (
            len(lines) < 2
            or not lines[1][1].lstrip().startswith("{")
            or not lines[0][1].rstrip().endswith("}")
        ):
            raise UsageError(f"{path} is not valid JSON: {_short(error)}", HELP) from None
        return [_line(path, n, line) for n, line in lines]
    return whole if isinstance(whole, list) else [whole]


def _line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}:{number} is not valid JSON: {_short(error)}", HELP) from None


def _short(error: BaseException) -> str:
    return str(error).split("\n")[0][:100]


def _from_layout(path: Path) -> list[Draft]:
    """The rows of a CSV file in the layout of speed.csv."""
    file = rows.read(path)
    if file.layout != "speed":
        raise UsageError(f"{path} holds {file.layout} rows; a calibration learns from speed rows", HELP)
    blank = dict.fromkeys(rows.READS["speed"], "")
    found = []
    for record in file.records:
        value = labels.number(record.fields.get("value", ""))
        fields = {**blank, **{k: v for k, v in record.fields.items() if k in blank}}
        label = f"{fields['model_canonical']} {fields['quant']} {fields['metric']}"
        deviation = labels.number(record.fields.get("stddev", ""))
        refusal = "" if value and value > 0 else "it has no positive value"
        found.append(
            Draft(
                f"line {record.line}",
                label,
                fields,
                value or 0.0,
                deviation=deviation,
                date=fields["date_if_known"],
                refusal=refusal,
            )
        )
    return found


def measured(draft: Draft) -> Measured | Refusal:
    """The measurement that a record is, or why it cannot calibrate."""
    if draft.refusal:
        return Refusal(draft.refusal)
    try:
        ask = _ask(tuple(sorted(draft.fields.items())), draft.device)
    except (ValueError, OverflowError) as error:
        return Refusal(str(error).split("\n")[0] or type(error).__name__)
    if isinstance(ask, Refusal):
        return ask
    for flag, reason in UNFIT.items():
        if flag in ask.flags:
            return Refusal(reason)
    ask = draft.refine(ask) if draft.refine else ask
    value = draft.value * (ask.n_devices if ask.per_device else 1)
    settings = json.dumps(draft.fields, sort_keys=True) + draft.settings
    return Measured(
        draft.where, draft.label, ask, value, draft.samples, draft.deviation, draft.date,
        hashlib.sha256(settings.encode()).hexdigest()[:16], draft.notes,
    )  # fmt: skip


@cache
def _ask(fields: tuple[tuple[str, str], ...], device: Device | None) -> Ask | Refusal:
    from planner import row_speed

    return row_speed.ask(dict(fields), device)
