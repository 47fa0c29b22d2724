"""Measures the error of every prediction against public measurements, and writes it down.

    LLM_PLAN_TRUTH=DIR python benchmarks/accuracy.py             # in-sample only, a minute
    python benchmarks/accuracy.py --truth DIR --cross --jobs 2   # and grouped cross-validation
    python benchmarks/accuracy.py --truth DIR --folds 2          # the same with two folds each: a quick look

DIR holds speed.csv, memory.csv, serving.csv and llamacpp_memory.csv. Cross-validation leaves out rows,
devices, models and sources, fits the calibration to the rest, and predicts what was left out through the
same code as `plan predict`; serving constants and memory constants are fitted anew in the same way. Fits are
kept in `--cache DIR`, so that an interrupted run goes on. Writes docs/accuracy.md, docs/seed-table.md and
docs/pictures/*.png; nothing in those files is typed by hand.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # many small solves: threads only wait for each other

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import truth_folder

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

FILES = ("speed", "memory", "serving", "llamacpp_memory")


def in_sample(truth: Path) -> dict[str, list[Any]]:
    """Scores of each file under the shipped calibration."""
    from planner import predict, rows, scores

    found = {}
    for name in FILES:
        if not (truth / f"{name}.csv").exists():
            continue
        file = rows.read(truth / f"{name}.csv")
        start = time.perf_counter()
        found[name] = scores.score(file, predict.price(file))
        print(f"{name}: {len(file.records)} rows in {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = truth_folder.parser(__doc__)
    parser.add_argument(
        "--cross", action="store_true", help="cross-validate, in as many folds as the calibration"
    )
    parser.add_argument("--folds", type=int, default=0, help="cross-validate in this many folds")
    parser.add_argument("--cache", type=Path, default=None, help="keeps fits between runs")
    parser.add_argument("--jobs", type=int, default=1, help="fits at once")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="where the pages go")
    options = truth_folder.parsed(parser, arguments)
    import accuracy_coverage as coverage
    import accuracy_crossed as crossing
    import accuracy_pages as pages
    import accuracy_parts as parts

    truth = options.truth
    cache = options.cache or Path(tempfile.mkdtemp(prefix="llm-plan-accuracy-"))
    shipped = in_sample(truth)
    crossed: dict[str, dict[str, list[Any]]] = {}
    sections = [pages.floor(parts.noise_floor(truth))]
    if options.cross or options.folds:
        crossed["speed"] = crossing.queued(truth, crossing.speed(truth, options.folds, cache, options.jobs))
        crossed["serving"] = crossing.serving(truth, shipped.get("serving", []))
        crossed["memory"] = {"model": crossing.memory(shipped.get("memory", []))}
        sections.append(parts.page(truth, crossed["speed"]))
        sections.append(coverage.page(truth, crossed["speed"], options.folds, cache))
    options.out.mkdir(parents=True, exist_ok=True)
    pages.write(options.out, shipped, crossed, [section for section in sections if section])
    print(f"wrote {options.out / 'accuracy.md'} and {options.out / 'seed-table.md'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
