"""What servers under load say of speed: their throughput, from mean latencies.

A closed loop of n users has n requests under way, so by Little's law it finishes n requests in the mean time of one,
TTFT + (output - 1) * TPOT; a static batch of n does the same work in the same time. Only aggregated servers without
speculation are taken. Their trust is low, since their clients and HTTP servers are in those times: they teach what
no offline run has measured (B200, B300, GB200; FP4; large mixtures), and stand in no table of errors.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from estimators.observation import Observation
from planner import rows as files
from planner.asks import Refusal

REFUSED = frozenset({"speculative", "disaggregated"})


def observations(folder: Path) -> list[Observation]:
    """One observation per configuration of `serving.csv`: the median of its repeats."""
    path, repeats = folder / "serving.csv", dict[Any, list[Observation]]()
    if not path.exists():
        return []
    for record in files.read(path).records:
        asked = files.ask(record, "serving")
        if (
            isinstance(asked, Refusal)
            or record.fields["mode"].strip() == "disagg"
            or REFUSED & set(asked.flags)
        ):
            continue
        d, fields = asked.deployment, record.fields
        work = d.workload
        request_s = (float(fields["ttft_ms"]) + float(fields["tpot_ms"]) * (work.output_tokens - 1)) / 1e3
        rate = work.n_sequences * (work.prompt_tokens + work.output_tokens) / request_s
        static = d.with_(workload=replace(work, client="static", prompts_per_user=1))
        same = (d.model.id, d.scheme.id, d.engine, d.machine.devices[0].id, d.placement, static.workload)
        found = Observation(static, "total_throughput_tps", rate, fields["source"], "low")
        repeats.setdefault(same, []).append(found)
    return [sorted(group, key=lambda o: o.value)[len(group) // 2] for group in repeats.values()]
