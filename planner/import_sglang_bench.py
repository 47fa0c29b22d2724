"""`python -m sglang.bench_serving --output-file x.jsonl`: one line appended per run, so a file may hold
several.

`concurrency` is the measured mean; `accept_length` above 1 means speculation. Newer versions put what the
server says of itself under `server_info`; older ones name neither model nor device: `--model`,
`--gpu`."""

from __future__ import annotations

from typing import Any

from planner import served
from planner.drafts import Draft, Hints, count, means, number, text


def recognises(documents: list[Any]) -> bool:
    """True for objects with the tool's own totals."""
    needed = {"completed", "total_input_tokens", "mean_tpot_ms"}
    return any(
        isinstance(d, dict)
        and needed <= set(d)
        and ("total_output_tokens_retokenized" in d or "accept_length" in d)
        for d in documents
    )


def read(documents: list[Any], hints: Hints) -> list[Draft]:
    """Every run of the file."""
    runs = [_run(f"line {n}", d, hints) for n, d in enumerate(documents, 1) if isinstance(d, dict)]
    return [draft for run in runs for draft in served.rows(run, hints)]


def _run(where: str, d: dict[str, Any], hints: Hints) -> served.Run:
    server = d.get("server_info") if isinstance(d.get("server_info"), dict) else {}
    assert isinstance(server, dict)
    done, most = count(d.get("completed")), d.get("max_concurrency")
    latency = number(d.get("mean_e2e_latency_ms"))
    in_flight = number(d.get("concurrency"))
    if in_flight is None:
        in_flight = served.little(number(d.get("request_throughput")), latency / 1e3 if latency else None)
    backend = text(d.get("backend"))
    accepted = number(d.get("accept_length"))
    return served.Run(
        where=where,
        engine="sglang" if backend.startswith("sglang") or not backend else backend.removesuffix("-chat"),
        model=text(server.get("model_path"))
        or text(d.get("model"))
        or text(d.get("model_id"))
        or hints.model,
        quant=text(server.get("quantization")),
        date=text(d.get("date"))[:10],
        n_devices=count(server.get("tp_size"), 1),
        in_flight=in_flight,
        most_in_flight=count(most) if most is not None else None,
        completed=done,
        failed=max(0, count(d.get("num_prompts"), done) - done),
        **means(d, done),
        speculative=accepted is not None and accepted > 1.0,
        version=text(server.get("version")),
        settings=f"{d.get('request_rate')}|{most}|{d.get('dataset_name')}",
    )
