"""One row of speed.csv -> the deployment that was measured and the metric printed.

The meaning of each metric is in the shared conventions: `decode_tps` is generated tokens per second of
decode, over the batch; `output_throughput_tps` divides by the whole time, prefill included;
`total_throughput_tps` counts prompt tokens too. `value` and `stddev` are never looked at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from estimators.deployment import Backend, Deployment, Placement, Settings, Workload
from hwdb.device import Device, Machine
from modeldb.model import Model
from planner import labels, names, spill
from planner.asks import Ask, Flag, Metric, Refusal
from planner.names import Named

Row = Mapping[str, str]
METRICS = (
    "decode_tps", "prefill_tps", "output_throughput_tps", "total_throughput_tps", "request_throughput",
    "ttft_ms", "tpot_ms",
)  # fmt: skip

#: Lengths of a ShareGPT conversation where a source prints none: vLLM's sample of it (benchmarks/README of
#: vLLM).
SHAREGPT_PROMPT, SHAREGPT_OUTPUT = 220, 200
#: Longest over mean answer of a thousand of those conversations. Assumed: some 1,000 tokens over 200 (the
#: sample admits at most 2,048 tokens in all); neither published nor fitted.
SHAREGPT_SPREAD = 5.0
#: Requests that TensorRT-LLM's throughput benchmark queues where a table does not say. Assumed: some thousands,
#: so that memory, not their number, bounds the batch.
BENCH_REQUESTS = 3000


@dataclass(frozen=True, slots=True)
class _Devices:
    """What the run had. `world` is above 1 where the row prints the rate of one device of so many."""

    machine: Machine
    device: Device  # the sockets of a processor joined
    count: int
    world: int
    per_device: bool
    assumed_host: bool


def ask(row: Row, device: Device | None = None) -> Ask | Refusal:
    """What this row asks; of `device`, where that is known better than by the row's name of it."""
    metric = row["metric"].strip()
    if metric not in METRICS:
        return Refusal(f"metric `{metric}` is not one of {', '.join(METRICS)}")
    named = _named(row, device)
    if isinstance(named, Refusal):
        return named
    engine, ran = named.engine, _devices(row, named.device)
    backend = labels.backend(row["backend"], ran.device.vendor, ran.device.kind, engine)
    work, lengths_assumed, metric = workload(row, metric, engine)
    if ran.world > 1:  # the rate is of one device of a world, and so is the batch
        work = replace(work, n_sequences=work.n_sequences * ran.world)
    year = _year(row, ran.device)
    placed = placement(row, named.model, engine, backend, ran.count)
    if placed.n_cpu_expert_layers > 0 and not spill.splits_experts(engine, year):
        placed = replace(placed, n_cpu_expert_layers=-1)  # as many layers as fit
    partly = bool(placed.n_cpu_expert_layers or (placed.n_gpu_layers is not None and backend != "cpu"))
    reported = labels.number(row["weights_gib_if_reported"])
    remarks: dict[Flag, bool] = {
        "size-corrected": named.scheme.approximate and bool(reported),
        "approximate-scheme": named.scheme.approximate and not reported,
        "assumed-lengths": lengths_assumed,
        "saturated": work.client == "burst",
        "speculative": labels.speculative(row["notes"] + row["host_note"]),
        "offloaded": partly or _prompts_elsewhere(row, backend, metric),
        "assumed-host": partly and ran.assumed_host,
    }
    deployment = Deployment(
        model=named.model,
        scheme=named.scheme,
        machine=ran.machine,
        engine=engine,
        backend=cast(Backend, backend),
        placement=placed,
        workload=work,
        settings=settings(row, engine, backend, work, year, reported * 2**30 if reported else None),
    )
    flags = tuple(flag for flag, holds in remarks.items() if holds)
    found = Ask(deployment, cast(Metric, metric), flags, n_devices=ran.count, per_device=ran.per_device)
    return spill.settled(found)


def _named(row: Row, device: Device | None) -> Named | Refusal:
    engine = labels.engine(row["engine"])
    if engine is None:
        return Refusal(f"engine `{row['engine']}` is not known")
    if engine == "deepseek in-house":
        return Refusal("an engine that nobody outside runs")
    found = device or names.device(row["hardware_canonical"] or row["hardware"])
    if isinstance(found, Refusal):
        return found
    model = names.model(row["model_canonical"], row["model"])
    if isinstance(model, Refusal):
        return model
    scheme = names.quant(row["quant"] or default_quant(engine), engine, model.id, model.native_dtype)
    if isinstance(scheme, Refusal):
        return scheme
    return names.unreadable(model, scheme) or Named(engine, found, model, scheme)


def _devices(row: Row, device: Device) -> _Devices:
    per_device = "per GPU per second" in row["notes"]
    count = max(1, labels.count(row["n_devices"], 1))
    world = (labels.noted(row["notes"], "world size") or 1) if per_device and count == 1 else 1
    count *= world
    if device.kind == "cpu":
        device, count = names.sockets(device, count), 1
    beside = f"{row['host_note']}; {row['notes'][:400]}; {row['hardware']}"
    machine, assumed_host = names.machine(device, count, beside)
    return _Devices(machine, device, count, world, per_device, assumed_host)


def _year(row: Row, hardware: Device) -> float | None:
    """Decimal year of the build. What goes on since a date was measured when its device was there."""
    date = row["date_if_known"]
    if not date:
        return labels.undated(row["engine"], row["source"])
    year = labels.year(date, row["source"])
    if year is not None and "onward" in date and hardware.release_year:
        return max(year, hardware.release_year + 0.5)
    return year


def _prompts_elsewhere(row: Row, backend: str, metric: str) -> bool:
    """Whether a GPU that the log of a CPU's run lists took its prompts: llama.cpp's kin send it products of large
    batches although no layer is there (Qwen3-235B's prompts ran as slowly as its answers, as 5.8 GB/s of copies
    would)."""
    return (
        backend == "cpu"
        and metric in ("prefill_tps", "ttft_ms")
        and bool(re.search(r"\b(RTX|GTX|Radeon|GPU)\b[^;]*\blisted in log\b", row["notes"]))
    )


def default_quant(engine: str) -> str:
    """What an engine runs when nothing is said: its usual, else GGUF downloads are Q4_K_M, the rest
    16-bit."""
    usual = {"gguf": "Q4_K_M", "mlx": "4bit", "exl": "EXL2 4.0 bpw"}.get(labels.container(engine), "BF16")
    return labels.usual_quant(engine) or usual


@dataclass(frozen=True, slots=True)
class _Lengths:
    prompt: int
    output: int
    cached: int
    assumed: bool


def workload(row: Row, metric: str, engine: str) -> tuple[Workload, bool, str]:
    """The workload, whether its lengths are assumed, and the metric (a decode rate that includes prefill is
    an output throughput, whatever its column says)."""
    notes = row["notes"]
    lengths = _lengths(row, metric, notes)
    if metric == "decode_tps" and re.search(r"includes prefill|tokens/total time", notes):
        metric = "output_throughput_tps"
    batch = labels.count(row["batch_or_concurrency"], 0)
    if metric == "prefill_tps" and lengths.assumed and (chunk := labels.noted(notes, "max prefill tokens")):
        batch = max(batch, chunk // lengths.prompt)  # prompts fill one pass of so many tokens
    client, users, prompts, rate = "static", max(1, batch), 1, None
    requests = re.search(r"(\d[\d,]*) (?:ShareGPT-derived )?(?:requests|prompts)", notes)
    n_requests = int(requests.group(1).replace(",", "")) if requests else 0
    capped = re.search(r"max concurrency (\d+)", notes)
    if arrivals := re.search(r"arrivals ([\d.]+) (?:sessions|requests)/s|(\d+)RPS", notes):
        client, rate = "poisson", float(arrivals.group(1) or arrivals.group(2))
        users, prompts = max(1, batch), max(1, n_requests // max(1, batch)) if n_requests else 10
    elif re.search(r"all sent at once|requests at once|all requests queued|sequences offline", notes):
        client, users = "burst", n_requests or batch or (BENCH_REQUESTS if engine == "trt-llm" else 1000)
    elif engine == "trt-llm" and not batch and metric.endswith(("_throughput_tps", "_throughput")):
        client, users = "burst", n_requests or BENCH_REQUESTS  # its throughput benchmark queues everything
    elif capped or (n_requests and batch > 1):
        users = int(capped.group(1)) if capped else batch
        client, prompts = "closed", max(1, n_requests // users) if n_requests else 10
    elif batch > 1 and re.search(r"request-throughput benchmark|prompts \d+|concurrency|closed loop", notes):
        client, prompts = "closed", 10
    work = Workload(
        prompt_tokens=lengths.prompt,
        output_tokens=lengths.output,
        cached_tokens=lengths.cached,
        n_sequences=users,
        client=cast(Any, client),
        prompts_per_user=prompts,
        requests_per_s=rate,
        output_spread=_output_spread(notes, row["output_tokens"]) if client in ("burst", "closed") else 1.0,
    )
    return work, lengths.assumed, metric


def _output_spread(notes: str, mean: str) -> float:
    """The longest output of a queue over the mean. Averages that are whole numbers are of fixed lengths."""
    if uniform := re.search(r"output uniform (\d+)-(\d+)", notes):
        return 2 * float(uniform[2]) / (float(uniform[1]) + float(uniform[2]))
    printed = labels.number(mean)
    if "avg in/out per request" in notes and printed is not None and printed == round(printed):
        return 1.0
    if re.search(r"avg in/out per request|ShareGPT", notes):
        return SHAREGPT_SPREAD
    return 1.0


def _lengths(row: Row, metric: str, notes: str) -> _Lengths:
    """Prompt, output and cached tokens. Blank ones take the source's own words, else short ones of a quick
    test."""
    prompt, output = labels.number(row["input_tokens"]), labels.number(row["output_tokens"])
    depth = labels.count(row["depth"], 0)
    # llama-bench -d: tokens in the cache before the prompt and before the answer
    if bench := re.search(r"llama-bench .*-p \d+ -n \d+ -d (\d+)", notes):
        depth = int(bench.group(1))
        prompt = prompt if metric != "decode_tps" else 0.0
    assumed = False
    if prompt is None:
        assumed = True
        per_request = re.search(r"avg ([\d.]+) tok/request", notes)
        if per_request:  # `vllm bench throughput` on ShareGPT with 512 output tokens
            prompt, output = max(1.0, float(per_request.group(1)) - 512), output or 512.0
        elif uniform := re.search(r"input uniform (\d+)-(\d+), output uniform (\d+)-(\d+)", notes):
            low_in, high_in, low_out, high_out = (int(x) for x in uniform.groups())
            prompt, output = (low_in + high_in) / 2, (low_out + high_out) / 2
        elif "ShareGPT" in notes:
            prompt, output = SHAREGPT_PROMPT, output or SHAREGPT_OUTPUT
        elif short := re.search(r"prompt \(~(\d+) tokens\)", notes):
            prompt = float(short.group(1))
        else:
            prompt = 512.0 if metric in ("prefill_tps", "ttft_ms") else 32.0
    if output is None:
        assumed = assumed or metric not in ("prefill_tps", "ttft_ms")
        output = 128.0 if metric not in ("prefill_tps", "ttft_ms") else 1.0
    if metric == "decode_tps" and output == 0:
        output = 128.0
    return _Lengths(round(prompt), round(output), depth, assumed)


def placement(row: Row, model: Model, engine: str, backend: str, n_devices: int) -> Placement:
    """Where the weights were, in the words of the row: -ngl, experts on the CPU, TP, EP, layer split."""
    if backend == "cpu":
        return Placement(n_gpu_layers=0)
    text = f"{row['notes']}; {row['host_note']}"
    tensor, pipeline, expert, data = _parallel(text, engine, n_devices)
    return Placement(
        n_gpu_layers=_gpu_layers(row["n_gpu_layers"], model, backend),
        n_cpu_expert_layers=_cpu_expert_layers(text, model, engine, n_devices),
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        expert_parallel=expert,
        data_parallel=data,
    )


def _gpu_layers(text: str, model: Model, backend: str) -> int | None:
    """-ngl: on Metal anything above 0 means everything; more than there are layers, or -1, means
    everything."""
    layers = labels.number(text)
    if layers is None or layers < 0 or layers > model.n_layers:
        return None
    if backend == "metal" and layers >= 1:
        return None
    return int(layers)


def n_expert_layers(model: Model) -> int:
    """Layers that have routed experts."""
    from modeldb.layers import Experts

    return sum(any(isinstance(ff, Experts) for ff in block.feed_forwards) for block in model.blocks)


def _cpu_expert_layers(text: str, model: Model, engine: str, n_devices: int) -> int:
    """MoE layers whose experts stay on the host, as the row says."""
    n_moe = n_expert_layers(model)
    if not n_moe:
        return 0
    if found := re.search(r"--?n-cpu-moe (\d+)|-ncmoe (\d+)", text):
        return min(n_moe, int(found.group(1) or found.group(2)))
    if found := re.search(r"-ot blk\.(\d+)-\d+ ffn=CPU", text):
        return max(0, min(n_moe, model.n_layers - int(found.group(1))))
    if re.search(r"exps=CPU|experts on CPU|all experts on (?:the )?CPU|--cpu-moe", text):
        return n_moe
    if re.search(r"(?:part of|some) experts on GPU|experts partly on CPU|first layers ffn on GPU", text):
        return -1  # not said how many: as many as do not fit
    if engine == "ktransformers":
        return n_moe
    return 0


def _parallel(text: str, engine: str, n_devices: int) -> tuple[int, int, int, int]:
    """(tensor, pipeline, expert, data) parallel sizes."""
    if n_devices == 1:
        return 1, 1, 1, 1
    data = _first(text, r"(?:--dp-size|--data-parallel-size|-dp|\bDP)[ =]?(\d+)") or 1
    tensor = _first(text, r"(?:--tp-size|--tensor-parallel-size|--tp_size|--tp|-tp|\bTP=?)[ =]?(\d+)")
    pipeline = _first(text, r"(?:--pp-size|--pipeline-parallel-size|--pp_size|-pp|\bPP=?)[ =]?(\d+)") or 1
    expert = _first(text, r"(?:--ep-size|--ep_size|-ep|\bEP=?)[ =]?(\d+)") or 1
    if re.search(r"--enable-expert-parallel|\+EP\b", text):
        expert = max(expert, n_devices)
    if re.search(r"-sm row|split-mode row|row split", text):
        return n_devices, 1, 1, 1
    if labels.splits_layers(engine) and not tensor:
        return 1, n_devices, 1, 1
    if data > 1 and engine == "sglang" and tensor:  # --dp-size with attention DP shares the TP group
        return max(1, n_devices // data), 1, max(expert, data), data  # experts span the group, however split
    tensor = min(tensor or max(1, n_devices // (pipeline * data)), n_devices)
    return tensor, pipeline, expert, data


def _first(text: str, pattern: str) -> int | None:
    found = re.search(pattern, text)
    return int(found.group(1)) if found else None


def settings(
    row: Row, engine: str, backend: str, work: Workload, year: float | None, weights_bytes: float | None
) -> Settings:
    """Engine settings that the row states; the rest stays at the engine's defaults."""
    notes = row["notes"]
    flash = labels.flag(row["flash_attn"])
    if flash is None:
        # llama.cpp used flash attention only on request until it became `auto` (b6325, August 2025).
        gguf = labels.container(engine) == "gguf"
        # Its llama-bench followed in 2026, by August (ggml-org/llama.cpp#27086).
        since = 2026.3 if "llama-bench" in notes else 2025.7
        flash = not gguf or (year is not None and year >= since)
    allocated = labels.noted(notes, "context allocated") or 0
    key, value = labels.kv_types(row["kv_type"], _checkpoint_cache(row, engine))
    return Settings(
        context_tokens=max(allocated, work.prompt_tokens + work.output_tokens + work.cached_tokens),
        kv_type_k=key,
        kv_type_v=value,
        flash_attention=flash,
        batch_tokens=labels.noted(notes, "n_batch")
        or labels.noted(notes, "max_num_batched_tokens")
        or _first(notes, r"--(?:max-num-batched-tokens|chunked-prefill-size|max_num_tokens)[ =](\d+)"),
        micro_batch_tokens=labels.noted(notes, "n_ubatch"),
        eager=labels.eager(engine, notes),
        n_threads=labels.count(row["threads"]) or None,
        program="bench" if engine in ("llama.cpp", "ik_llama.cpp") else "server",
        engine_version=row["engine_version_or_build"],
        toolchain=labels.toolchain(row["host_note"], backend),
        year=year,
        weights_bytes=weights_bytes,
        repacked=repacked(row, engine),
    )


def _checkpoint_cache(row: Row, engine: str) -> str:
    """Cache type where none is stated: TensorRT-LLM takes it from the checkpoint, and the FP8 and FP4 ones of
    its tables carry an FP8 cache (ModelOpt's `kv_cache_quant_algo`)."""
    packed = engine == "trt-llm" and re.match(r"(NV)?FP[48]\b", row["quant"], re.IGNORECASE)
    return "fp8" if packed else "f16"


def repacked(row: Row, engine: str) -> bool:
    """Whether host weights are interleaved for the CPU, or the row says that the CPU multiplies them."""
    if engine != "ik_llama.cpp":
        return False
    text = f"{row['notes']}; {row['host_note']}"
    if re.search(r"rtr=1|(?<!\w)-rtr\b|remaining layers on CPU", text):
        return True
    return bool(re.search(r"_R[48]\b", row["quant"]))
