"""Damage a tiny GGUF file in many ways and run each: a clear error or finite arithmetic, never a crash or a
hang.

    python benchmarks/fuzz_runner.py [--files 100000] [--seed 0] [--run-every 4] [--architecture llama] [--of FILE.gguf]

Each case flips bytes, cuts the file, swaps two runs of bytes or overwrites integers of the header with
extreme ones;
every n-th that opens is also run for a prompt and a token. A crash of the interpreter ends the script with
a signal;
the seed and the case number printed last lead to it. `--of` damages copies of a small file of yours instead.
"""

from __future__ import annotations

import argparse
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

EXTREMES = (0, 1, 2, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


HIDDEN, INNER, VOCAB = 32, 64, 48
Shapes = dict[str, tuple[int, ...]]
DENSE: Shapes = {
    "ffn_gate.weight": (HIDDEN, INNER),
    "ffn_up.weight": (HIDDEN, INNER),
    "ffn_down.weight": (INNER, HIDDEN),
}
ATTENTION: Shapes = {f"attn_{n}.weight": (HIDDEN, HIDDEN) for n in ("q", "k", "v", "output")}
NORMS: Shapes = {"attn_norm.weight": (HIDDEN,), "ffn_norm.weight": (HIDDEN,)}
STATES = {"ssm.conv_kernel": 4, "ssm.inner_size": HIDDEN, "ssm.state_size": 32, "ssm.time_step_rank": 2,
          "ssm.group_count": 1}  # fmt: skip
MAMBA: Shapes = {
    "ssm_in.weight": (HIDDEN, 2 * HIDDEN + 66), "ssm_conv1d.weight": (4, HIDDEN + 64), "ssm_dt.bias": (2,),
    "ssm_conv1d.bias": (HIDDEN + 64,), "ssm_a": (1, 2), "ssm_d": (1, 2), "ssm_norm.weight": (HIDDEN, 1),
    "ssm_out.weight": (HIDDEN, HIDDEN),
}  # fmt: skip
DELTA: Shapes = {
    "attn_qkv.weight": (HIDDEN, HIDDEN + 64), "attn_gate.weight": (HIDDEN, HIDDEN), "ssm_beta.weight": (HIDDEN, 2),
    "ssm_alpha.weight": (HIDDEN, 2), "ssm_conv1d.weight": (4, HIDDEN + 64), "ssm_dt.bias": (2,), "ssm_a": (2,),
    "ssm_norm.weight": (HIDDEN // 2,), "ssm_out.weight": (HIDDEN, HIDDEN),
}  # fmt: skip
SHORT: Shapes = {
    "shortconv.conv.weight": (3, HIDDEN), "shortconv.in_proj.weight": (HIDDEN, 3 * HIDDEN),
    "shortconv.out_proj.weight": (HIDDEN, HIDDEN),
}  # fmt: skip
LIGHTNING: Shapes = {
    "attn_qkv.weight": (HIDDEN, 3 * HIDDEN), "attn_gate.weight": (HIDDEN, HIDDEN),
    "attn_norm_2.weight": (HIDDEN,), "attn_output.weight": (HIDDEN, HIDDEN),
}  # fmt: skip
WIDE = ATTENTION | {"attn_q.weight": (HIDDEN, 2 * HIDDEN)}
# architecture: metadata of its own, tensors of each layer
KINDS: dict[str, tuple[dict[str, Any], list[Shapes]]] = {
    "llama": ({}, [ATTENTION | NORMS | DENSE]),
    "falcon-h1": (STATES, [ATTENTION | MAMBA | NORMS | DENSE]),
    "qwen35": (STATES, [WIDE | NORMS | DENSE, DELTA | NORMS | DENSE]),
    "minimax-01": ({"residual_scale": 1.4}, [LIGHTNING | NORMS | DENSE, ATTENTION | NORMS | DENSE]),
    "lfm2": ({"shortconv.l_cache": 3}, [SHORT | NORMS | DENSE, ATTENTION | NORMS | DENSE]),
}


def sound_file(path: Path, architecture: str = "llama") -> tuple[bytes, int]:
    """A model of one layer or two, 20 to 50 kB, and the bytes of its header."""
    from runner import synthetic
    from runner.weights import Weights

    own, layers = KINDS[architecture]
    metadata = {
        "block_count": len(layers), "context_length": 64, "embedding_length": HIDDEN, "feed_forward_length": INNER,
        "attention.head_count": 1, "attention.head_count_kv": 1, "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0, "rope.dimension_count": HIDDEN, **own,
    }  # fmt: skip
    stated = {"general.architecture": architecture, "tokenizer.ggml.model": "no_vocab"}
    stated |= {f"{architecture}.{key}": value for key, value in metadata.items()}
    shapes = {
        "token_embd.weight": (HIDDEN, VOCAB),
        "output_norm.weight": (HIDDEN,),
        "output.weight": (HIDDEN, VOCAB),
    }
    shapes |= {f"blk.{i}.{n}": shape for i, layer in enumerate(layers) for n, shape in layer.items()}
    rng = np.random.default_rng(0)
    small = lambda n, s: len(s) == 1 or "norm" in n or s[0] < 32  # noqa: E731
    kinds = {n: "F32" if small(n, s) else "Q8_0" if "ffn" in n else "Q4_0" for n, s in shapes.items()}
    tensors = {n: synthetic.tensor(n, kinds[n], s, rng) for n, s in shapes.items()}
    synthetic.write_gguf(Weights("sound", stated, tensors), path)
    return path.read_bytes(), header_bytes(path)


def header_bytes(path: Path) -> int:
    """Where a file's tensors begin."""
    from gguf import GGUFReader

    return int(GGUFReader(path).data_offset)


def damaged(sound: bytes, header: int, rng: np.random.Generator) -> bytes:
    """One damaged copy; two thirds of the damage hits the header."""
    data = bytearray(sound)
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
    p.add_argument("--architecture", choices=list(KINDS), default="llama")
    p.add_argument("--of", type=Path, metavar="FILE.gguf")
    args = p.parse_args()
    counts: Counter[str] = Counter()
    started, slowest = time.perf_counter(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.gguf"
        if args.of:
            path.write_bytes(args.of.read_bytes())
            sound, header = path.read_bytes(), header_bytes(path)
        else:
            sound, header = sound_file(path, args.architecture)
        assert outcome(path, True) == "runs"
        for case in range(args.files):
            rng = np.random.default_rng((args.seed, case))
            path.unlink()
            path.write_bytes(damaged(sound, header, rng))
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
