"""Damage a tiny GGUF file in many ways and run each: a clear error or finite arithmetic, never a crash or a
hang.

    python benchmarks/fuzz_runner.py [--files 100000] [--seed 0] [--run-every 4]

Each case flips bytes, cuts the file, swaps two runs of bytes or overwrites integers of the header with
extreme ones;
every n-th that opens is also run for a prompt and a token. A crash of the interpreter ends the script with
a signal;
the seed and the case number printed last lead to it.
"""

from __future__ import annotations

import argparse
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

EXTREMES = (0, 1, 2, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def sound_file(path: Path) -> bytes:
    """A llama of one layer, 20 kB."""
    from runner import synthetic
    from runner.weights import Weights

    hidden, inner, vocab = 32, 64, 48
    metadata = {
        "general.architecture": "llama", "llama.block_count": 1, "llama.context_length": 64,
        "llama.embedding_length": hidden, "llama.feed_forward_length": inner, "llama.attention.head_count": 1,
        "llama.attention.head_count_kv": 1, "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0, "llama.rope.dimension_count": hidden, "tokenizer.ggml.model": "no_vocab",
    }  # fmt: skip
    shapes = {
        "token_embd.weight": (hidden, vocab), "output_norm.weight": (hidden,), "output.weight": (hidden, vocab),
        "blk.0.attn_norm.weight": (hidden,), "blk.0.ffn_norm.weight": (hidden,),
        **{f"blk.0.attn_{n}.weight": (hidden, hidden) for n in ("q", "k", "v", "output")},
        "blk.0.ffn_gate.weight": (hidden, inner), "blk.0.ffn_up.weight": (hidden, inner),
        "blk.0.ffn_down.weight": (inner, hidden),
    }  # fmt: skip
    rng = np.random.default_rng(0)
    kinds = {n: "F32" if len(s) == 1 else "Q8_0" if "ffn" in n else "Q4_0" for n, s in shapes.items()}
    tensors = {n: synthetic.tensor(n, kinds[n], s, rng) for n, s in shapes.items()}
    synthetic.write_gguf(Weights("sound", metadata, tensors), path)
    return path.read_bytes()


def damaged(sound: bytes, rng: np.random.Generator) -> bytes:
    """One damaged copy; two thirds of the damage hits the header."""
    data = bytearray(sound)
    header = 1200
    kind = rng.integers(5)
    if kind == 0:
        return bytes(data[: rng.integers(len(data))])
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(header if rng.random() < 0.67 else len(data) - 8))
        if kind in (1, 2):
            data[at] = int(rng.integers(256)) if kind == 1 else data[at] ^ (1 << int(rng.integers(8)))
        elif kind == 3:
            data[at : at + 4] = struct.pack("<I", EXTREMES[int(rng.integers(len(EXTREMES)))])
        else:
            n, other = int(rng.integers(1, 64)), int(rng.integers(len(data) - 64))
            data[at : at + n], data[other : other + n] = data[other : other + n], data[at : at + n]
    return bytes(data)


def outcome(path: Path, run: bool) -> str:
    """What opening (and running) the file came to. Anything but a clear error or success is raised."""
    from modeldb.errors import ModelError
    from runner import weights
    from runner.engine import load
    from runner.errors import RunnerError

    try:
        if not run:
            weights.check(weights.open_file(path))
            return "opens"
        engine = load(path, n_context=32, n_batch=8, n_threads=1)
    except (ModelError, RunnerError) as error:
        if "\n" in str(error):
            raise AssertionError(f"an error of more than one line: {error}") from error
        return type(error).__name__
    logits = engine.prefill([1, 2, 3])
    logits = engine.decode(4)
    engine.close()
    return "runs" if np.isfinite(logits).all() else "runs, not finite"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--files", type=int, default=100_000)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--run-every", type=int, default=4)
    args = p.parse_args()
    counts: Counter[str] = Counter()
    started, slowest = time.perf_counter(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.gguf"
        sound = sound_file(path)
        assert outcome(path, True) == "runs"
        for case in range(args.files):
            rng = np.random.default_rng((args.seed, case))
            path.unlink()
            path.write_bytes(damaged(sound, rng))
            if case % 5000 == 0:
                print(
                    f"case {case}: {dict(counts)}, {time.perf_counter() - started:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
            one = time.perf_counter()
            try:
                counts[outcome(path, case % args.run_every == 0)] += 1
            except BaseException:
                print(f"seed {args.seed} case {case}", file=sys.stderr)
                raise
            slowest = max(slowest, time.perf_counter() - one)
    print(
        f"{args.files} files, {time.perf_counter() - started:.0f} s, slowest {slowest:.2f} s: {dict(counts)}"
    )


if __name__ == "__main__":
    main()
