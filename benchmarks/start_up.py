"""How fast a cold `plan --vram 8G --task chat` is, as a whole process.

    python benchmarks/start_up.py [--runs 7]

`benchmarks/pricing.py` measures deployments priced per second.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

QUESTION = ("--vram", "8G", "--task", "chat")
GOAL_S = 0.6


def cold_start(runs: int) -> list[float]:
    """Seconds of whole processes, one after the other; the first warms the file cache and does not count."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "planner.cli", *QUESTION], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return times[1:]


def main() -> None:
    """Prints the median and the best, beside the goal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    times = cold_start(runs)
    median = statistics.median(times)
    asked = " ".join(QUESTION)
    print(f"plan {asked}: median {median:.3f} s of {runs}, best {min(times):.3f} s, goal {GOAL_S} s")


if __name__ == "__main__":
    main()
