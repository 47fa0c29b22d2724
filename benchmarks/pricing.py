"""How many deployments per second `estimators.estimate.price` prices on one core, and what a table costs at
least.

    OMP_NUM_THREADS=1 python benchmarks/pricing.py
"""

from __future__ import annotations

import time

import numpy as np

from estimators.estimate import price
from estimators.formats import class_index
from estimators.table import DeploymentTable
from estimators.walk import load_table
from hwdb import catalogue
from hwdb.device import Machine
from modeldb import schemes

ROWS = 1_000_000
REPEATS = 3


def table(rows: int, machine: Machine, n_gpu_layers: int) -> DeploymentTable:
    """`rows` GGUF deployments drawn from the catalogue, with arrays in every column a planner varies."""
    found, rng = load_table(), np.random.default_rng(0)
    kinds = {s: class_index(schemes.get(s)) for _, s in found.position}
    pairs = [(i, kinds[s]) for (_, s), i in found.position.items() if schemes.get(s).container == "gguf"]
    chosen = np.array(pairs)[rng.integers(0, len(pairs), rows)]
    return DeploymentTable(
        machine, "llama.cpp", "cuda", found.take(chosen[:, 0]), chosen[:, 1],
        context_tokens=rng.integers(1024, 32768, rows), prompt_tokens=rng.integers(16, 8192,
        rows).astype(float), kv_k_bytes=rng.choice([2.0, 34 / 32], rows), kv_v_bytes=rng.choice([2.0,
        34 / 32], rows), n_gpu_layers=np.full(rows, n_gpu_layers), n_cpu_expert_layers=np.zeros(rows),
    )  # fmt: skip


def main() -> None:
    known = catalogue.load()
    machine = Machine("bench", (known.resolve("rtx 4090"),), known.resolve("amd-ryzen-9-7950x"), 64 << 30)
    for name, layers in (("all on the GPU", -1), ("split with the host", 20)):
        whole, one = table(ROWS, machine, layers), table(1, machine, layers)
        price(one)
        best = min(_timed(whole) for _ in range(REPEATS))
        fixed = min(_timed(one) for _ in range(20))
        print(f"{name}: {ROWS / best:,.0f} deployments/s, {fixed * 1e3:.2f} ms per table")


def _timed(deployments: DeploymentTable) -> float:
    start = time.perf_counter()
    price(deployments)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
