"""Predicted against measured with the bundled runner on this machine, and the fit behind the predictions.

    python benchmarks/verify.py --fit                 fits estimators/data/runner.json on FITTED
    python benchmarks/verify.py --page docs/verify.md publishes HELD, none of which was fitted

Both hold dense models, mixtures of experts and hybrids.

Weights are synthetic, so nothing is downloaded. The machine's own rates are measured in turn with the runs (a read of
memory before each few tokens, a product before each prompt), so that other load hits both alike; of times the lower
quartile is taken and of rates the upper one, for other load only ever slows down.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

FITTED = (
    "h2o-danube3-500m-chat:Q6_K", "qwen3-0.6b:Q8_0", "qwen3-0.6b:Q4_K_M", "tinyllama-1.1b-chat-v1.0:Q4_0",
    "deepseek-coder-1.3b-instruct:Q5_K_M", "smollm2-1.7b-instruct:F16", "qwen3-1.7b:Q4_K_M", "qwen3-1.7b:Q8_0",
    "gemma-2-2b-it:Q4_K_M", "falcon3-3b-instruct:Q4_0", "phi-3-mini-4k-instruct:Q4_K_M", "yi-6b:Q4_K_M",
    "qwen1.5-moe-a2.7b:Q4_K_M", "qwen1.5-moe-a2.7b:Q8_0", "granite-3.1-3b-a800m-instruct:Q4_K_M",
    "granite-4.0-h-1b:Q4_K_M", "lfm2-700m:Q8_0", "qwen3.5-0.8b:Q8_0", "mixtral-8x22b-instruct-v0.1:Q4_K_M",
    "qwen2-57b-a14b-instruct:Q4_K_M", "deepseek-v2:Q4_K_M", "gpt-oss-20b:MXFP4_MOE",
    "qwen3-coder-480b-a35b-instruct:Q4_K_M", "qwen3-next-80b-a3b-instruct:Q4_K_M",
)  # fmt: skip
HELD = (
    "qwen2.5-0.5b-instruct:Q8_0", "qwen2.5-0.5b-instruct:Q4_K_M", "gemma-3-1b-it:Q4_0",
    "llama-3.2-1b-instruct:Q4_K_M", "llama-3.2-1b-instruct:F16", "qwen2.5-1.5b-instruct:Q8_0",
    "llama-3.2-3b-instruct:Q4_K_M", "phi-4-mini-instruct:Q4_0", "qwen2.5-7b-instruct:Q4_K_M",
    "llama-3.1-8b-instruct:Q4_0", "granite-3.1-1b-a400m-instruct:Q4_K_M", "falcon-h1-0.5b-instruct:Q8_0",
    "lfm2-1.2b:Q4_K_M", "lfm2-8b-a1b:Q4_K_M", "granite-4.0-h-tiny:Q4_K_M", "qwen3.5-2b:Q4_K_M",
    "qwen3-30b-a3b:Q4_K_M", "gpt-oss-120b:MXFP4_MOE", "qwen3-235b-a22b:Q4_K_M", "deepseek-v3:Q4_K_M",
    "kimi-k2-instruct:Q4_K_M",
)  # fmt: skip


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--fit", action="store_true")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--page", default="")
    p.add_argument("--pairs", default="")
    p.add_argument("--json", default="", help="keep observations here; those kept are not measured again")
    p.add_argument("--rounds", type=int, default=1, help="how often each pair is measured")
    args = p.parse_args()
    from verify_fit import fit
    from verify_page import page
    from verify_rates import usual_rates
    from verify_runs import FULL_BYTES, LONG, LONG_BYTES, agreement, observe

    from estimators.reference import CALIBRATION
    from planner import measure

    wanted = args.pairs.split(",") if args.pairs else FITTED if args.fit else HELD
    kept = Path(args.json) if args.json else None
    seen = json.loads(kept.read_text()) if kept and kept.exists() else []

    def keep() -> None:
        if kept:
            kept.write_text(json.dumps(seen, indent=1))

    for number in range(args.rounds):
        for text in wanted:
            if sum(s["pair"] == text for s in seen) > number:
                continue
            started = time.perf_counter()
            seen.append(observe(text, args.threads))
            told = json.dumps({k: seen[-1][k] for k in ("tpot", "ttft", "bandwidth", "layer_s", "load")})
            print(text, told, f"{time.perf_counter() - started:.0f} s", flush=True)
            keep()
    seen = [s for s in seen if s["pair"] in wanted]
    if args.fit:
        CALIBRATION.write_text(json.dumps(fit(seen, usual_rates(args.threads)), indent=1) + "\n")
        print(CALIBRATION.read_text()[-900:])
        return
    for s in seen:
        if s["weight_bytes"] < FULL_BYTES and "agreement" not in s:
            s["agreement"] = agreement(
                s["pair"], args.threads, n_long=LONG if s["weight_bytes"] < LONG_BYTES else 0
            )
            print(s["pair"], s["agreement"], flush=True)
            keep()
    host = measure.this_machine().host
    text = page(seen, host.name if host else "this machine")
    print(text)
    if args.page:
        Path(args.page).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
