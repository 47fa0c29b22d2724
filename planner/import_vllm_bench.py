"""`vllm bench serve --save-result`: one object per file (older: `benchmark_serving.py`), or one line per
run with `--append-result`. TPOT leaves the first token out. The file does not name the device: `--gpu`
does; metadata given to the tool as `--metadata gpu=NAME tp=2` is read."""

from __future__ import annotations

from typing import Any

from planner import served
from planner.drafts import Draft, Hints, count, means, number, numbers, text


def recognises(documents: list[Any]) -> bool:
    """True for objects with the totals and a model."""
    needed = {"completed", "total_input_tokens", "total_output_tokens", "model_id"}
    return any(isinstance(d, dict) and needed <= set(d) for d in documents)


def read(documents: list[Any], hints: Hints) -> list[Draft]:
    """Every run of the file."""
    runs = [_run(f"run {n}", d) for n, d in enumerate(documents, 1) if isinstance(d, dict)]
    return [draft for run in runs for draft in served.rows(run, hints)]


def _run(where: str, d: dict[str, Any]) -> served.Run:
    done = count(d.get("completed"))
    failed = d.get("failed")
    latency = number(d.get("mean_e2el_ms"))
    if latency is None:
        latency = _latency_ms(d, done)
    most = d.get("max_concurrency")
    return served.Run(
        where=where,
        engine=_engine(text(d.get("backend")) or text(d.get("endpoint_type"))),
        model=text(d.get("model_id")),
        quant=text(d.get("quantization")),
        date=_date(text(d.get("date"))),
        n_devices=count(d.get("tensor_parallel_size") or d.get("tp"), 1),
        in_flight=served.little(number(d.get("request_throughput")), latency / 1e3 if latency else None),
        most_in_flight=count(most) if most is not None else None,
        completed=done,
        failed=count(failed) if failed is not None else max(0, count(d.get("num_prompts"), done) - done),
        **means(d, done),
        speculative=any(k.startswith("spec_decode") and d[k] not in (None, 0) for k in d),
        gpu=text(d.get("gpu")) or text(d.get("gpu_name")),
        version=text(d.get("vllm_version")),
        settings=f"{d.get('request_rate')}|{d.get('burstiness')}|{most}",
    )


def _latency_ms(d: dict[str, Any], done: int) -> float | None:
    """Mean request latency from what is always printed: first token plus the others, all of mean length."""
    ttft, tpot = number(d.get("mean_ttft_ms")), number(d.get("mean_tpot_ms"))
    each = numbers(d.get("output_lens"))
    tokens = sum(each) / len(each) if each else count(d.get("total_output_tokens")) / max(1, done)
    return ttft + tpot * max(0.0, tokens - 1) if ttft is not None and tpot is not None else None


def _engine(backend: str) -> str:
    """`openai-chat` is a protocol; the tool's own server is vLLM unless `--engine` says otherwise."""
    return "vllm" if backend.startswith("openai") or not backend else backend


def _date(stamp: str) -> str:
    """`20251103-142233` -> 2025-11-03."""
    return f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:8]}" if stamp[:8].isdigit() else stamp[:10]
