"""guidellm's report: `guidellm benchmark --output-path x.json`. A sweep holds many benchmarks; of each
metric the distribution over the successful requests is read. Its `time_per_output_token` includes the
first token, its `inter_token_latency` does not: the latter is our TPOT."""

from __future__ import annotations

from typing import Any

from planner import served
from planner.drafts import Draft, Hints, count, number, text
from planner.errors import UsageError

VERSIONS = (1, 2)  # of the report's metadata; a report without one is from before they were numbered


def recognises(documents: list[Any]) -> bool:
    """True for a report with benchmarks and their metrics."""
    return any(isinstance(d, dict) and _benchmarks(d) for d in documents)


def _benchmarks(d: dict[str, Any]) -> list[dict[str, Any]]:
    found = d.get("benchmarks")
    return (
        [b for b in found if isinstance(b, dict) and isinstance(b.get("metrics"), dict)]
        if isinstance(found, list)
        else []
    )


def read(documents: list[Any], hints: Hints) -> list[Draft]:
    """Every benchmark of the report. Raises UsageError for a version of the report that nobody has read."""
    found = []
    for d in documents:
        if not isinstance(d, dict):
            continue
        version = _inside(d, "metadata").get("version")
        if version is not None and version not in VERSIONS:
            raise UsageError(
                f"guidellm report of version {str(version)[:10]}: known are {', '.join(map(str, VERSIONS))}",
                "measure again with a version that is known",
            )
        for n, benchmark in enumerate(_benchmarks(d), 1):
            found += served.rows(_run(f"benchmark {n}", benchmark, d), hints)
    return found


def _inside(d: Any, *path: str) -> dict[str, Any]:
    """The object at a path; empty where there is none."""
    for key in path:
        d = d.get(key) if isinstance(d, dict) else None
    return d if isinstance(d, dict) else {}


def _mean(benchmark: dict[str, Any], name: str) -> float | None:
    return number(_inside(benchmark, "metrics", name, "successful").get("mean"))


def _deviation(benchmark: dict[str, Any], name: str) -> float | None:
    return number(_inside(benchmark, "metrics", name, "successful").get("std_dev"))


def _run(where: str, b: dict[str, Any], whole: dict[str, Any]) -> served.Run:
    totals = (
        _inside(b, "metrics", "request_totals")
        or _inside(b, "request_totals")
        or _inside(b, "run_stats", "requests_made")
    )
    strategy = _inside(b, "config", "strategy") or _inside(b, "args", "strategy")
    kind = text(strategy.get("type_"))
    streams = 1 if kind == "synchronous" else strategy.get("streams") or strategy.get("max_concurrency")
    latency = _mean(b, "request_latency")  # seconds
    in_flight = _mean(b, "request_concurrency")
    if in_flight is None:
        in_flight = served.little(_mean(b, "requests_per_second"), latency)
    done = count(totals.get("successful")) or count(
        _inside(b, "metrics", "request_latency", "successful").get("count")
    )
    return served.Run(
        where=where,
        engine=_engine(b, whole),
        model=_model(b, whole),
        quant="",
        date=_date(b),
        n_devices=1,
        in_flight=in_flight,
        most_in_flight=count(streams) if streams is not None else None,
        completed=done,
        failed=count(totals.get("errored")),
        prompt_tokens=_mean(b, "prompt_token_count") or 0.0,
        output_tokens=_mean(b, "output_token_count") or 0.0,
        tpot_ms=_mean(b, "inter_token_latency_ms"),
        tpot_deviation_ms=_deviation(b, "inter_token_latency_ms"),
        ttft_ms=_mean(b, "time_to_first_token_ms"),
        ttft_deviation_ms=_deviation(b, "time_to_first_token_ms"),
        speculative=False,
        settings=f"{kind}|{streams}|{strategy.get('rate')}",
    )


def _backends(b: dict[str, Any], whole: dict[str, Any]) -> list[dict[str, Any]]:
    """Wherever versions of the tool kept what they talked to."""
    return [
        _inside(b, "config", "backend"), _inside(b, "worker"), _inside(b, "args", "backend"),
        _inside(whole, "config", "backend"), _inside(whole, "config", "spec", "backend"),
        _inside(whole, "args"),
    ]  # fmt: skip


def _model(b: dict[str, Any], whole: dict[str, Any]) -> str:
    places = _backends(b, whole)
    return next((text(p[k]) for p in places for k in ("model", "backend_model") if text(p.get(k))), "")


def _engine(b: dict[str, Any], whole: dict[str, Any]) -> str:
    """guidellm speaks HTTP to any server; vLLM is the one it was made for, others are named with --engine."""
    return next((text(p[k]) for p in _backends(b, whole) for k in ("engine",) if text(p.get(k))), "vllm")


def _date(b: dict[str, Any]) -> str:
    import datetime

    stamp = number(b.get("start_time")) or number(_inside(b, "run_stats").get("start_time"))
    stamp = stamp or number(_inside(b, "scheduler_metrics").get("start_time"))
    if not stamp or not 1e9 < stamp < 4e9:
        return ""
    return datetime.datetime.fromtimestamp(stamp, datetime.UTC).date().isoformat()
