"""Compute tests/data/runner/golden*.npz with llama.cpp: logits and greedy continuations of the tests' tiny files.

    python benchmarks/golden_logits.py [FILE ...] [--missing]
        (in an environment with llama-cpp-python, gguf and numpy; --missing: only what FILE does not hold yet)

The files are written by tests/runner_tiny.py, seeded, so that anyone can repeat this; the tests then need
no llama.cpp.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import runner_tiny  # noqa: E402

N_GREEDY, THREADS = 64, 2


def logits_of(path: Path, prompt: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """llama.cpp's logits of the last KEPT prompt tokens, and its greedy continuation."""
    import llama_cpp as lc

    model_parameters, parameters = lc.llama_model_default_params(), lc.llama_context_default_params()
    parameters.n_ctx = runner_tiny.CONTEXT
    parameters.n_threads = parameters.n_threads_batch = THREADS
    model = lc.llama_model_load_from_file(str(path).encode(), model_parameters)
    if not model:
        raise SystemExit(f"llama.cpp cannot load {path}")
    context = lc.llama_init_from_model(model, parameters)
    n_vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))

    def step(tokens: list[int], position: int) -> np.ndarray:
        batch = lc.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position + i, 1, 1
            batch.seq_id[i][0] = 0
        if lc.llama_decode(context, batch):
            raise SystemExit("llama_decode failed")
        rows = [
            np.ctypeslib.as_array(lc.llama_get_logits_ith(context, i), (n_vocab,)).copy()
            for i in range(len(tokens))
        ]
        lc.llama_batch_free(batch)
        return np.stack(rows)

    logits = step(prompt, 0)
    last, greedy = logits[-1], []
    for i in range(N_GREEDY):
        greedy.append(int(last.argmax()))
        last = step([greedy[-1]], len(prompt) + i)[0]
    lc.llama_free(context)
    lc.llama_model_free(model)
    return logits, np.array(greedy, np.int16)


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="*", default=list(runner_tiny.FILES))
    parser.add_argument("--missing", action="store_true")
    asked = parser.parse_args()
    import llama_cpp as lc

    quiet = lc.llama_log_callback(lambda level, text, user: None)
    lc.llama_log_set(quiet, None)
    lc.llama_backend_init()
    for file in asked.files:
        compute(ROOT / "tests/data/runner" / file, *runner_tiny.FILES[file], asked.missing)


def compute(path: Path, cases: tuple[tuple[str, str], ...], n_kept: int, missing: bool) -> None:
    """Write the file anew; `missing`: what it holds stays."""
    held = dict(np.load(path)) if missing and path.exists() else {}
    kept: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in cases:
            keys = f"{name}/{kind}/logits", f"{name}/{kind}/greedy"
            if keys[0] in held:
                kept |= {key: held[key] for key in keys}
                continue
            logits, greedy = logits_of(
                runner_tiny.write(Path(folder) / "model.gguf", name, kind), runner_tiny.prompt(name)
            )
            kept |= dict(zip(keys, (logits[-n_kept:], greedy), strict=True))
            print(
                f"{name:10s} {kind:7s} spread {logits.std():.2f}  {len(set(greedy.tolist()))} distinct tokens",
                flush=True,
            )
    np.savez_compressed(path, **kept)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
