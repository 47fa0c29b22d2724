"""Factors of the terms of `estimators.reference`, and its intervals, fitted to runs of `verify_runs`."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import numpy as np
from verify_runs import pair

LEAST_WIDTH = 0.1  # of an interval, as a logarithm: another day on the same machine differs by as much


def deployments(seen: dict[str, Any]) -> list[tuple[str, Any, float]]:
    """(phase, deployment, measured seconds) of an observation."""
    from estimators.deployment import Deployment, Settings, Workload
    from estimators.reference import ENGINE
    from hwdb.device import KernelRates
    from planner import measure

    model, scheme = pair(seen["pair"])
    here = measure.this_machine()
    own = here.host
    assert own is not None
    products = {f: product for f, _, product in seen["formats"]}

    def one(prompt: int, rates: dict[str, Any]) -> Deployment:
        kernels = KernelRates(tuple((f, stream, products[f]) for f, stream, _ in rates["formats"]),
                              tuple(rates["attention"]), rates["attention_flops"], rates["layer_s"])  # fmt: skip
        host = dataclasses.replace(
            own, bandwidth_bytes_per_s=rates["bandwidth"], int8_ops=seen["int8"], fp32_flops=seen["fp32"],
            basis="measured", kernels=kernels,
        )  # fmt: skip
        machine = dataclasses.replace(here, host=host)
        settings = Settings(context_tokens=2048)
        return Deployment(
            model, scheme, machine, ENGINE, "cpu", workload=Workload(prompt, 1), settings=settings
        )

    steps = zip(seen["depths"], seen["beside"], seen["tpot"], strict=True)
    rows = [("decode", one(depth, rates), t) for depth, rates, t in steps]
    return [*rows, ("prefill", one(seen["n_prompt"], seen), seen["ttft"])]


# -- the fit -------------------------------------------------------------------------------------------------

#: Factor of each term before anything was seen, and how far (as a logarithm) it may be off. Products and streams are
#: rates of the very kernels; vectors are read and written a few times, by not all threads.
PRIORS = {
    "decode": {"weights": (1.0, 0.1), "experts": (1.1, 0.3), "cache": (1.0, 0.3), "states": (1.0, 0.3),
               "layers": (2.0, 0.5), "vectors": (1.0, 1.0), "step": (1.0, 1.0)},
    "prefill": {"products": (1.0, 0.1), "experts": (1.0, 0.2), "attention": (1.0, 0.2), "states": (1.0, 0.3),
                "vectors": (1.0, 0.3), "weights": (0.3, 1.0), "last": (1.1, 0.2), "layers": (1.0, 0.5),
                "step": (1.0, 1.0)},
}  # fmt: skip
SIGMA = 0.05  # of one measured time, as a logarithm


def fit(seen: list[dict[str, Any]], usual: dict[str, Any]) -> dict[str, Any]:
    """Factors by robust least squares of logarithms under the priors; intervals from leaving one model out at a
    time."""
    from scipy.optimize import least_squares

    from estimators import reference

    phases: dict[str, Any] = {}
    intervals, spread = {}, {}
    for phase, priors in PRIORS.items():
        rows = [(s["pair"].split(":")[0], row) for s in seen for row in deployments(s) if row[0] == phase]
        names = list(priors)
        centre = np.log([priors[n][0] for n in names])
        width = np.array([priors[n][1] for n in names])
        found = [reference.terms(d)[phase] for _, (_, d, _) in rows]
        table = np.array([[one[n] for n in names] for one in found])
        times, models = np.array([t for _, (_, _, t) in rows]), np.array([m for m, _ in rows])

        def solve(use: np.ndarray, table: np.ndarray = table, times: np.ndarray = times,
                  centre: np.ndarray = centre, width: np.ndarray = width) -> np.ndarray:  # fmt: skip
            def residuals(x: np.ndarray) -> np.ndarray:
                errors = (np.log(table[use] @ np.exp(x)) - np.log(times[use])) / SIGMA
                # outliers count once, not squared
                return np.concatenate(
                    [np.sign(errors) * np.sqrt(2 * (np.sqrt(1 + errors**2) - 1)), (x - centre) / width]
                )

            return np.exp(least_squares(residuals, centre).x)

        factors = solve(np.ones(len(rows), bool))
        phases[phase] = {n: round(float(f), 4) for n, f in zip(names, factors, strict=True)}
        ratios = np.empty(len(rows))
        for model in sorted(set(models)):
            out = models == model
            ratios[out] = times[out] / (table[out] @ solve(~out))
        apart = np.abs(np.log(ratios))
        edge = max(float(np.quantile(apart, 0.9)), LEAST_WIDTH)
        intervals[phase] = {"slow": round(math.exp(edge), 3), "fast": round(math.exp(-edge), 3)}
        spread[phase] = {
            "rows": len(rows),
            "median_error_fitted": round(float(np.median(np.abs(np.log(times / (table @ factors))))), 3),
            "median_error_left_out": round(float(np.median(apart)), 3),
        }
    return {
        **phases,
        "intervals": intervals,
        "usual": usual,
        "provenance": {
            "source": "benchmarks/verify.py --fit: the bundled runner on synthetic weights, at the rates that "
            "`plan measure` finds",
            "date": time.strftime("%Y-%m-%d"),
            "threads": seen[0]["threads"],
            "pairs": [s["pair"] for s in seen],
            "errors": spread,
        },
    }
