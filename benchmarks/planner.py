"""How fast the planner is: cold start of the main question, and deployments priced per second.

python benchmarks/planner.py [--runs 7]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

import numpy as np

QUESTION = ("--vram", "8G", "--task", "chat")


def cold_start(runs: int) -> list[float]:
    """Seconds of whole processes, one after the other; the first warms the file cache and does not count."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "planner.cli", *QUESTION], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return times[1:]


def priced_per_second(repeat: int = 40) -> float:
    """Deployments per second and core: the candidates of the main question, priced `repeat` times over in one table."""
    from estimators.estimate import price
    from planner import candidates, machines, placement, request, stock
    from planner.flags import Flags

    asked = request.build(Flags(vram="8G", task="chat"))
    pairs = stock.build(asked)
    machine = machines.resolve(asked).machine
    (group,) = candidates.price_all(asked, pairs, machine)
    rows = np.tile(np.arange(len(group)), repeat)
    many = group.take(rows)
    table = candidates.table(
        asked, pairs, machine, group.engine, group.backend, group.kv_types, many.pair, many.kv,
        placement.places(len(rows)),
    )  # fmt: skip
    price(table)
    start = time.process_time()
    price(table)
    return len(rows) / (time.process_time() - start)


def main() -> None:
    """Prints both figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    times = cold_start(runs)
    print(
        f"plan {' '.join(QUESTION)}: {statistics.median(times):.3f} s median of {runs}, {min(times):.3f} s best"
    )
    print(f"priced: {priced_per_second():,.0f} deployments per second and core")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
