"""What a benchmark prints, given what prefill and decode take. Pure arithmetic; scalars or arrays."""

from __future__ import annotations

import numpy as np

from estimators.walk import Number

METRICS = (
    "prefill_tps",
    "decode_tps",
    "output_throughput_tps",
    "total_throughput_tps",
    "request_throughput",
    "ttft_ms",
    "tpot_ms",
)


def printed(
    prefill_s: Number,
    step_s: Number,
    request_s: Number,
    n_sequences: Number,
    prompt_tokens: Number,
    output_tokens: Number,
) -> dict[str, Number]:
    """Every metric of one static batch: `n_sequences` prompts at once, then `output_tokens` steps together.

    `prefill_tps` and `decode_tps` count the batch and leave the other phase out; `output_throughput_tps`
    and `total_throughput_tps` divide output, and prompt plus output, by the whole time. The first output
    token comes from the prefill. A queue drained at a fixed number of running sequences has the same
    throughput.
    """
    whole_s = prefill_s + request_s + step_s * np.maximum(output_tokens - 1, 0)
    return {
        "prefill_tps": n_sequences * prompt_tokens / prefill_s,
        "decode_tps": n_sequences / step_s,
        "output_throughput_tps": n_sequences * output_tokens / whole_s,
        "total_throughput_tps": n_sequences * (prompt_tokens + output_tokens) / whole_s,
        "request_throughput": n_sequences / whole_s,
        "ttft_ms": 1e3 * (prefill_s + request_s),
        "tpot_ms": 1e3 * step_s,
    }


def running_sequences(
    n_requests: Number, free_cache_bytes: Number, sequence_bytes: Number, limit: Number
) -> Number:
    """Sequences that run at once when more are queued: what the cache holds, at most the engine's limit."""
    held = np.maximum(np.floor(free_cache_bytes / np.maximum(sequence_bytes, 1.0)), 1.0)
    return np.minimum(np.minimum(n_requests, held), limit)


def drained(running: float, n_requests: float, spread: float) -> float:
    """Mean sequences that run while `n_requests` drain through `running` places. The longest answer is
    `spread` times the mean; it starts last, and everything else ends before it."""
    return 1.0 / (1.0 / max(running, 1.0) + (spread - 1.0) / max(n_requests, running, 1.0))
