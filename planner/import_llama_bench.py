"""llama-bench's results: `-o json`, `jsonl`, `csv`, and the Markdown table that people paste. The runner
of this project writes the same JSON.

`n_gen` = 0 is prompt processing (pp), `n_prompt` = 0 generation (tg), averaged over a context that grows
from `n_depth`. Tokenization and sampling are left out by the tool. Sizes in the table are GiB and 1e9
parameters, rounded.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from typing import Any

from modeldb.model import Model
from planner import drafts, labels
from planner.asks import Refusal
from planner.drafts import Draft, Hints, count, number, text

#: Columns of the Markdown table -> keys of the JSON.
COLUMNS = {
    "ngl": "n_gpu_layers", "sm": "split_mode", "threads": "n_threads", "nkvo": "no_kv_offload",
    "fa": "flash_attn", "embd": "embeddings", "dev": "devices",
    "ts": "tensor_split", "ot": "tensor_buft_overrides",
    "ncmoe": "n_cpu_moe",
    "backend": "backends", "lm": "load_mode",
}  # fmt: skip
SAME_SHAPE = 1e-4  # of the parameters: rotation tables are counted or not
#: Keys that make two rows different runs; they go into the settings as they are.
SETTINGS = (
    "n_batch", "n_ubatch", "n_threads", "type_k", "type_v", "n_gpu_layers", "split_mode", "flash_attn",
    "load_mode",
    "use_mmap", "no_op_offload", "no_host", "repack", "main_gpu", "build_commit", "backends",
    "cpu_mask", "poll",
)  # fmt: skip


def recognises(documents: list[Any]) -> bool:
    """True for objects with the counts that define a test."""
    return any(isinstance(d, dict) and {"n_prompt", "n_gen", "avg_ts"} <= set(d) for d in documents)


def is_markdown(content: str) -> bool:
    return bool(re.search(r"^\s*\|\s*model\s*\|.*\|\s*t/s\s*\|\s*$", content, re.MULTILINE))


def is_csv(content: str) -> bool:
    return content.lstrip().startswith("build_commit,")


def drafts_of(records: Iterable[tuple[str, dict[str, Any]]], hints: Hints) -> list[Draft]:
    """One draft per (where, record)."""
    return [_draft(where, record, hints) for where, record in records]


def from_csv(content: str, hints: Hints) -> list[Draft]:
    """`-o csv`. A row of another length than the header is of another version of the tool: refused."""
    table = [row for row in csv.reader(io.StringIO(content)) if row]
    found = []
    for n, row in enumerate(table[1:], 1):
        if len(row) == len(table[0]):
            found += drafts_of([(f"row {n}", dict(zip(table[0], row, strict=True)))], hints)
        else:
            said = f"it has {len(row)} fields where the header has {len(table[0])}"
            found.append(drafts.refused(f"row {n}", "csv", said))
    return found


def from_markdown(content: str, hints: Hints) -> list[Draft]:
    """The printed table, also among other lines (what the tool says of the devices, the build)."""
    printed = re.search(r"Device \d+: ([^,\n]+)", content) or re.search(
        r"^\S*\s*\d+ = (.+?) \(.*\) \|", content, re.M
    )
    devices = re.findall(r"Device \d+: ([^,\n]+)", content) or ([printed.group(1)] if printed else [])
    build = re.search(r"^build: (\S+)", content, re.MULTILINE)
    shared = {"build_commit": build.group(1) if build else ""} | (
        {"gpu_info": ", ".join(devices)} if devices else {}
    )
    header: list[str] = []
    records = []
    for line_number, line in enumerate(content.splitlines(), 1):
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.strip().startswith("|") or set(line) <= set("|-: \t"):
            continue
        if "t/s" in cells:
            header = cells
        elif header and len(cells) == len(header):
            row = {COLUMNS.get(name, name): cell for name, cell in zip(header, cells, strict=True)}
            records.append((f"line {line_number}", {**shared, **_from_cells(row)}))
    return drafts_of(records, hints)


def _from_cells(row: dict[str, str]) -> dict[str, Any]:
    """A table row under the keys of the JSON."""
    test = re.fullmatch(r"(?:pp(\d+))?\+?(?:tg(\d+))?(?: @ d(\d+))?", row.get("test", ""))
    rate = re.match(r"([\d.]+)(?:\s*±\s*([\d.]+))?", row.get("t/s", ""))
    size = re.match(r"([\d.]+)\s*(MiB|GiB)", row.get("size", ""))
    parameters = re.match(r"([\d.]+)\s*([MB])", row.get("params", ""))
    unit, scale = {"MiB": 2**20, "GiB": 2**30}, {"M": 1e6, "B": 1e9}
    return {
        **row,
        "model_type": row.get("model", ""),
        "model_size": float(size[1]) * unit[size[2]] if size else None,
        "model_n_params": float(parameters[1]) * scale[parameters[2]] if parameters else None,
        "_rounding": (
            0.005 * scale[parameters[2]] if parameters else 0.0,
            0.005 * unit[size[2]] if size else 0.0,
        ),
        "n_prompt": test[1] or 0 if test else None,
        "n_gen": test[2] or 0 if test else None,
        "n_depth": test[3] or 0 if test else 0,
        "avg_ts": rate[1] if rate else None,
        "stddev_ts": rate[2] if rate else None,
    }


def read(documents: list[Any], hints: Hints) -> list[Draft]:
    """`-o json` and `-o jsonl`."""
    return drafts_of(((f"test {n}", d) for n, d in enumerate(documents, 1) if isinstance(d, dict)), hints)


def _unusable(r: dict[str, Any]) -> str:
    """Why a record says nothing of one phase on whole devices."""
    remarks = r.get("remarks")
    if r.get("contaminated") in (True, 1, "1", "true"):
        said = "; ".join(str(x) for x in remarks) if isinstance(remarks, list) else ""
        return "the run was disturbed" + (f" ({said})" if said else "")
    if number(r.get("avg_ts")) is None or (number(r.get("avg_ts")) or 0) <= 0:
        return "it has no rate (avg_ts)"
    prompt, output = count(r.get("n_prompt"), -1), count(r.get("n_gen"), -1)
    if prompt < 0 or output < 0 or not prompt + output:
        return "it does not say what was tested (n_prompt, n_gen)"
    if max(prompt, output, count(r.get("n_depth"))) > drafts.MOST_TOKENS or count(r.get("n_depth")) < 0:
        return "its lengths cannot be"
    if prompt and output:
        return "prompt and answer in one figure (pg): the pp and tg tests tell them apart"
    if labels.flag(str(r.get("embeddings", ""))):
        return "an embedding run"
    if labels.flag(str(r.get("no_kv_offload", ""))):
        return "the cache is in host memory (-nkvo)"
    if count(r.get("n_cpu_moe")):
        return "experts are in host memory (-ncmoe): which processor was slow cannot be told"
    if text(r.get("tensor_buft_overrides")) not in ("", "none"):
        return "some tensors are placed elsewhere (-ot): which processor was slow cannot be told"
    shares = {x for x in re.split(r"[/,;]", text(r.get("tensor_split"))) if (number(x) or 0) > 0}
    return "the devices hold unequal shares (-ts)" if len(shares) > 1 else ""


def _draft(where: str, r: dict[str, Any], hints: Hints) -> Draft:
    prompt, output, depth = (count(r.get(k)) for k in ("n_prompt", "n_gen", "n_depth"))
    name = text(r.get("model_type")) or text(r.get("model_filename"))
    label = f"{name} {f'pp{prompt}' if prompt else f'tg{output}'}" + (f" @ d{depth}" if depth else "")
    if reason := _unusable(r):
        return drafts.refused(where, label, reason)
    engine = hints.engine or labels.engine(text(r.get("engine")) or "llama.cpp")
    if engine is None:
        return drafts.refused(where, label, f"engine `{text(r.get('engine'))[:40]}` is not known")
    backend = _backend(text(r.get("backends")), saw_none=r.get("gpu_info") == "")
    printed = text(r.get("cpu_info")) if backend == "cpu" else _devices(r)
    device, n_devices = drafts.device(printed, hints, where, cpu=backend == "cpu")
    model = _model(r, hints)
    if isinstance(model, Refusal):
        return drafts.refused(where, label, f"{model.reason}; name it with --model")
    scheme = drafts.scheme(_quant(r), engine, model, hints)
    if isinstance(scheme, Refusal):
        return drafts.refused(where, label, f"{scheme.reason}; name it with --quant")
    size, parameters = number(r.get("model_size")) or 0.0, number(r.get("model_n_params")) or 0.0
    if reason := drafts.witness(model, scheme, parameters, size, r.get("_rounding", (0.0, 0.0))):
        return drafts.refused(where, label, reason)
    date = text(r.get("test_time"))[:10]
    flash = r.get("flash_attn")
    flash = 1 if flash in (None, "", -1, "-1", "auto") else flash
    row = drafts.fields(
        date_if_known=date,
        hardware_canonical=device.id,
        n_devices=1 if text(r.get("split_mode")) == "none" else n_devices,
        engine=engine,
        engine_version_or_build=text(r.get("build_commit")),
        backend=backend,
        model_canonical=model.id,
        quant=scheme.id,
        weights_gib_if_reported=size / 2**30 if scheme.approximate and size else "",
        n_gpu_layers="" if backend == "cpu" else count(r.get("n_gpu_layers"), -1),
        threads=count(r.get("n_threads")) or "" if backend == "cpu" else "",
        flash_attn=int(labels.flag(str(flash)) is not False),
        kv_type=f"{text(r.get('type_k')) or 'f16'}/{text(r.get('type_v')) or 'f16'}",
        batch_or_concurrency=1,
        input_tokens=prompt,
        output_tokens=output,
        depth=depth,
        metric="prefill_tps" if prompt else "decode_tps",
        notes="llama-bench"
        + "".join(f"; {k}={count(r.get(k))}" for k in ("n_batch", "n_ubatch") if count(r.get(k)))
        + ("; -sm row" if text(r.get("split_mode")) == "row" else ""),
    )
    kept = "|".join(f"{k}={r.get(k)}" for k in SETTINGS if k in r)
    return Draft(
        where,
        label,
        row,
        float(r["avg_ts"]),
        drafts.numbers(r.get("samples_ts")),
        number(r.get("stddev_ts")),
        date,
        kept,
        device=device,
    )


def _backend(printed: str, saw_none: bool) -> str:
    """The accelerator's backend; `Metal,BLAS` is Metal, a CUDA build that saw no GPU ran on the CPU."""
    known = [labels.tables()["backends"].get(part.strip().lower()) for part in printed.split(",")]
    found = next((b for b in known if b and b != "cpu"), "cpu")
    return "cpu" if saw_none and found != "metal" else found


def _devices(r: dict[str, Any]) -> str:
    """The GPUs that took part: all that the tool saw, or those of `-dev CUDA0/CUDA1`."""
    seen = [part.strip() for part in text(r.get("gpu_info")).split(",") if part.strip()]
    chosen = text(r.get("devices"))
    if seen and chosen not in ("", "auto"):
        picked = [int(i) for i in re.findall(r"(\d+)", chosen)]
        seen = [seen[i] for i in picked if i < len(seen)] or seen
    if text(r.get("split_mode")) == "none" and seen:
        main = count(r.get("main_gpu"))
        seen = [seen[main if 0 <= main < len(seen) else 0]]
    return ", ".join(seen)


def _model(r: dict[str, Any], hints: Hints) -> Model | Refusal:
    """By the name of its file; else by its architecture and exact number of parameters, for speed asks no
    more."""
    file = re.split(r"[/\\]", text(r.get("model_filename")))[-1]
    found = drafts.model((file, file.replace(".", "-")), hints)
    return found if isinstance(found, Model) or hints.model else _of_shape(r, found if file else None)


def _of_shape(r: dict[str, Any], otherwise: Refusal | None) -> Model | Refusal:
    """The model of the catalogue with this architecture and number of parameters; the earliest of several
    that share one width and depth."""
    import numpy as np

    from estimators.walk import load_table
    from modeldb import catalogue

    wanted, kind = number(r.get("model_n_params")), text(r.get("model_type"))
    architecture = kind.split(" ")[0].rstrip("?")
    if not wanted or not architecture:
        return otherwise or Refusal("it names no model")
    table, known = load_table(), catalogue.load()
    first = {model: row for (model, _), row in reversed(table.position.items())}
    total = np.asarray(table.walk.total_params)
    slack = r.get("_rounding", (0.0, 0.0))[0] + SAME_SHAPE * wanted
    close = [known.get(name) for name, row in first.items() if abs(total[row] - wanted) <= slack]
    close = [m for m in close if m.architecture == architecture]
    shapes = {(m.hidden_size, m.n_layers): m.id for m in close}
    if len(shapes) > 1:
        return Refusal(f"`{kind}` is any of {', '.join(sorted(shapes.values()))}")
    none = otherwise or Refusal(f"no model known is a `{kind}` of {wanted:,.0f} parameters")
    return min(close, key=lambda m: m.release_date or "9") if close else none


def _quant(r: dict[str, Any]) -> str:
    """The quantization that the file's name states, else the one of its type (`qwen2 7B Q4_K - Medium`)."""
    file = re.split(r"[/\\]", text(r.get("model_filename")))[-1].removesuffix(".gguf")
    file = re.sub(r"-\d{5}-of-\d{5}$", "", file)
    named = re.search(
        r"(?:^|[-._])((?:UD-)?(?:I?Q\d\w*|TQ\d\w*|BF16|F16|F32|MXFP4\w*))$", file, re.IGNORECASE
    )
    if named:
        return named[1].upper()
    kind = text(r.get("model_type"))
    return re.sub(r"^\S+\s+\S+\s+", "", kind).replace("MXFP4 MoE", "MXFP4_MOE")
