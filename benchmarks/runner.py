"""The runner against llama.cpp: same GGUF file, same threads, runs alternated, medians.

    python benchmarks/runner.py --llama-python PATH/python [--threads 2] [--models 1b,8b] [--formats
    Q4_0,Q8_0,Q4_K_M,F16]

`--llama-python` is an interpreter that has llama-cpp-python, built for this machine; without it only the
runner is measured. Files are synthetic (written to a temporary folder), so nothing is downloaded. The read
bandwidth of the machine is measured in the same alternation, so that other load hits all of them alike.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

# layers, hidden, feed-forward, heads, key-value heads, vocabulary. The 8B shape keeps 8 of its 32 layers, so
# that
# every format fits in memory beside llama.cpp; time per layer does not depend on their number.
SHAPES = {
    "1b": (22, 2048, 5632, 32, 4, 32000),
    "8b": (8, 4096, 14336, 32, 8, 32000),
    "70b": (2, 8192, 28672, 64, 8, 32000),
    "moe": (4, 2048, 768, 32, 4, 32000),
}
EXPERTS = {"moe": (128, 8)}  # experts, and those a token uses: Qwen3-30B-A3B with 4 of its 48 layers


def build(shape: str, mix: str, folder: Path) -> Path:
    """A Llama (or a Qwen3-MoE) of this shape, or a catalogue model, as a GGUF file in a llama.cpp mix."""
    from modeldb import catalogue, schemes
    from modeldb.layers import Attention, Block, Dense, Experts
    from modeldb.model import Model
    from runner import synthetic

    path = folder / f"{shape}-{mix}.gguf"
    if path.exists():
        return path
    if shape not in SHAPES:
        synthetic.write_gguf(synthetic.weights(catalogue.load().resolve(shape), schemes.get(mix)), path)
        return path
    n_layers, hidden, inner, heads, kv, vocab = SHAPES[shape]
    moe = EXPERTS.get(shape)
    head_dim, family = (128, "qwen3moe") if moe else (hidden // heads, "llama")
    block = Block((Attention(heads, kv, head_dim, head_dim, qk_norm="head" if moe else ""),),
                  (Experts(*moe, inner) if moe else Dense(inner),))  # fmt: skip
    model = Model(
        id=f"llama-{shape}", name=f"Llama {shape}", hf_id="", family="llama", base="", architecture=family,
        model_type="qwen3_moe" if moe else "llama", modality="text", hidden_size=hidden, vocab_size=vocab,
        tied_embeddings=False, max_context=8192, blocks=(block,) * n_layers, rotary_dim=head_dim,
    )  # fmt: skip
    synthetic.write_gguf(synthetic.weights(model, schemes.get(mix)), path)
    return path


WORKER = """
import json, sys, time
import llama_cpp as lc
path, threads, context, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
quiet = lc.llama_log_callback(lambda level, text, user: None)
lc.llama_log_set(quiet, None)
lc.llama_backend_init()
mp, cp = lc.llama_model_default_params(), lc.llama_context_default_params()
cp.n_ctx, cp.n_batch, cp.n_ubatch, cp.n_threads, cp.n_threads_batch = context, batch, batch, threads, threads
model = lc.llama_model_load_from_file(path.encode(), mp)
ctx = lc.llama_init_from_model(model, cp)
def step(tokens):
    ids = (lc.llama_token * len(tokens))(*tokens)
    assert lc.llama_decode(ctx, lc.llama_batch_get_one(ids, len(tokens))) == 0
    lc.llama_synchronize(ctx)
print(json.dumps(lc.llama_print_system_info().decode()), flush=True)
for line in sys.stdin:
    tokens, n_decode = json.loads(line)
    lc.llama_memory_clear(lc.llama_get_memory(ctx), True)
    t = time.perf_counter()
    for i in range(0, len(tokens), batch):
        step(tokens[i : i + batch])
    prefill = time.perf_counter() - t
    times = []
    for _ in range(n_decode):
        t = time.perf_counter(); step([5]); times.append(time.perf_counter() - t)
    print(json.dumps([prefill, times]), flush=True)
"""


class Llama:
    """llama.cpp in a process of its own, idle between runs."""

    def __init__(self, python: str, path: Path, threads: int, context: int, batch: int, clock: str) -> None:
        command = [
            python,
            "-c",
            WORKER.replace("perf_counter", clock),
            str(path),
            str(threads),
            str(context),
            str(batch),
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.info = json.loads(self.process.stdout.readline())

    def run(self, tokens: list[int], n_decode: int) -> tuple[float, list[float]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([tokens, n_decode]) + "\n")
        self.process.stdin.flush()
        prefill, times = json.loads(self.process.stdout.readline())
        return prefill, times

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def run_engine(engine, tokens: list[int], n_decode: int, clock: str) -> tuple[float, list[float]]:  # type: ignore[no-untyped-def]
    now = getattr(time, clock)
    engine.rewind(0)
    started = now()
    engine.prefill(tokens)
    prefill, times = now() - started, []
    for _ in range(n_decode):
        started = now()
        engine.decode(5)
        times.append(now() - started)
    return prefill, times


def compare(path: Path, args: argparse.Namespace) -> dict:
    from runner.bandwidth import Reader
    from runner.engine import load

    tokens = np.random.default_rng(0).integers(3, 30000, args.prompt).tolist()
    context = args.prompt + args.decode + 8
    engine = load(path, n_context=context, n_threads=args.threads, n_batch=args.batch)
    reader = Reader(args.threads)
    clock = "process_time" if args.processor_time else "perf_counter"
    rest = (args.threads, context, args.batch, clock)
    llama = Llama(args.llama_python, path, *rest) if args.llama_python else None
    run_engine(engine, tokens[:64], 2, clock)
    if llama:
        llama.run(tokens[:64], 2)
    rows: dict[str, list[float]] = {k: [] for k in ("pp", "tg", "pp_llama", "tg_llama", "read")}
    for _ in range(args.repeats):
        if llama:
            prefill, times = llama.run(tokens, args.decode)
            rows["pp_llama"].append(prefill)
            rows["tg_llama"].append(float(np.median(times)))
        prefill, times = run_engine(engine, tokens, args.decode, clock)
        rows["pp"].append(prefill)
        rows["tg"].append(float(np.median(times)))
        rows["read"].append(float(np.median([reader.rate() for _ in range(3)])))
    engine.close()
    reader.close()
    if llama:
        llama.close()
    return report(path.stem, args, engine.meter, rows)


def report(name: str, args: argparse.Namespace, meter, rows: dict[str, list[float]]) -> dict:  # type: ignore[no-untyped-def]
    median = {k: float(np.median(v)) for k, v in rows.items() if v}
    paired = lambda a, b: float(np.median(np.array(rows[a]) / np.array(rows[b]))) if rows[a] else None  # noqa: E731
    used = meter.token_weight_bytes / np.array(rows["tg"])
    result = {
        "model": name,
        "threads": args.threads,
        "prefill_tps": args.prompt / median["pp"],
        "prefill_gflops": meter.token_flops * args.prompt / median["pp"] / 1e9,
        "decode_tps": 1 / median["tg"],
        "decode_gb_s": float(np.median(used)) / 1e9,
        "bytes_per_token": meter.token_weight_bytes,
        "read_gb_s": median["read"] / 1e9,
        "share_of_read": float(np.median(used / np.array(rows["read"]))),
        "prefill_ratio": paired("pp_llama", "pp"),
        "decode_ratio": paired("tg_llama", "tg"),
        "llama_prefill_tps": args.prompt / median["pp_llama"] if "pp_llama" in median else None,
        "llama_decode_tps": 1 / median["tg_llama"] if "tg_llama" in median else None,
        "load_average": os.getloadavg()[0],
    }
    ratio = lambda v: f"{v:5.2f}x" if v else "   - "  # noqa: E731
    print(
        f"{name:14s} prefill {result['prefill_tps']:7.1f} t/s {result['prefill_gflops']:6.0f} GFLOP/s"
        f" {ratio(result['prefill_ratio'])}"
        f" | decode {result['decode_tps']:6.2f} t/s {result['decode_gb_s']:5.1f} GB/s {result['share_of_read']:4.0%} of"
        f" {result['read_gb_s']:.1f} {ratio(result['decode_ratio'])} | {meter.token_weight_bytes / 1e6:.0f} MB/token"
        f" | load {result['load_average']:.1f}",
        flush=True,
    )
    return result


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--llama-python", default="")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--models", default="1b,8b", help="shapes, or names of catalogue models")
    p.add_argument("--formats", default="Q4_0,Q8_0,Q4_K_M,F16")
    p.add_argument("--prompt", type=int, default=512)
    p.add_argument("--decode", type=int, default=24)
    p.add_argument("--batch", type=int, default=512)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--folder", default="")
    p.add_argument("--processor-time", action="store_true",
                   help="seconds of the processor, not of the clock (--threads 1, on a loaded machine)")  # fmt: skip
    p.add_argument("--json", default="", help="write the results here")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        results = [
            compare(build(m, f, folder), args)
            for m in args.models.split(",")
            for f in args.formats.split(",")
        ]
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
