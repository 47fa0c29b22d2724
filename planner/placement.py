"""Where the weights may live: on one device, over several, or partly in host memory, as columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from estimators.deployment import Placement
from estimators.table import PriceTable
from hwdb.device import Machine

if TYPE_CHECKING:
    from estimators.walk import Walk

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

SPILLING = frozenset({"llama.cpp", "ollama", "ktransformers"})
LAYER_SPLITTING = frozenset({"llama.cpp", "ollama", "exllamav2"})


@dataclass(frozen=True)
class Places:
    """Columns of `estimators.deployment.Placement`; `n_gpu_layers` < 0 means every layer and the head."""

    n_gpu_layers: Integers
    n_cpu_expert_layers: Integers
    tensor_parallel: Integers
    pipeline_parallel: Integers

    def take(self, rows: Integers) -> Places:
        return Places(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def one(self, row: int) -> Placement:
        """One row as estimators' value."""
        layers = int(self.n_gpu_layers[row])
        return Placement(
            n_gpu_layers=None if layers < 0 else layers,
            n_cpu_expert_layers=int(self.n_cpu_expert_layers[row]),
            tensor_parallel=int(self.tensor_parallel[row]),
            pipeline_parallel=int(self.pipeline_parallel[row]),
        )


def places(
    n: int, layers: Integers | int = -1, experts: Integers | int = 0, tensor: int = 1, pipeline: int = 1
) -> Places:
    """`n` rows from columns or single numbers."""
    return Places(
        *(np.broadcast_to(np.asarray(x, dtype=np.int64), (n,)) for x in (layers, experts, tensor, pipeline))
    )


def join(parts: Sequence[Places]) -> Places:
    """All places in one table, in order."""
    return Places(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Places)})


def whole(machine: Machine, engine: str, n: int) -> Iterator[Places]:
    """Everything on the accelerators: on one, and over all of them."""
    count = len(machine.devices)
    yield places(n)
    if count <= 1:
        return
    if engine in LAYER_SPLITTING:
        yield places(n, pipeline=count)
    elif count & (count - 1) == 0:
        yield places(n, tensor=count)
    else:
        yield places(n, pipeline=count)


def may_spill(machine: Machine, engine: str, backend: str) -> bool:
    """True when layers may go to host memory: the engine can, there is some, and it is not the device's
    own."""
    return bool(
        engine in SPILLING
        and backend != "cpu"
        and machine.devices
        and machine.host_memory_bytes
        and not all(d.unified_memory for d in machine.devices)
    )


def spilled(
    price: Callable[[Integers, Places], PriceTable], walk: Walk, over: Integers, n_devices: int
) -> Iterator[tuple[Integers, Places]]:
    """For rows `over` that do not fit: the fewest expert layers, or else whole layers, that must go to the
    host. `price` prices rows at places, `walk` is that of those rows.

    Bytes are linear in the number of layers moved up to rounding, so the number is solved from two prices and
    tried with its neighbours; pricing decides which fits.
    """
    if not len(over):
        return
    pipeline = max(1, n_devices)
    n_layers = np.asarray(walk.n_layers, dtype=np.int64)
    n_experts = np.asarray(walk.n_moe_layers, dtype=np.int64)
    n = len(over)
    all_there = price(over, places(n, pipeline=pipeline))
    missing = -np.asarray(all_there.free_bytes, dtype=float)

    moe = np.flatnonzero(n_experts > 0)
    if len(moe):
        rows = over[moe]
        out = price(rows, places(len(moe), experts=n_experts[moe], pipeline=pipeline))
        saved = np.maximum(np.asarray(all_there.device_bytes)[moe] - np.asarray(out.device_bytes), 1.0)
        need = np.ceil(np.maximum(missing[moe], 0) / saved * n_experts[moe]).astype(np.int64)
        for extra in (0, 1, 3):
            count = np.clip(need + extra, 1, n_experts[moe])
            yield rows, places(len(moe), experts=count, pipeline=pipeline)

    dense = np.flatnonzero(n_experts == 0)
    if len(dense):
        rows = over[dense]
        none = price(rows, places(len(dense), layers=0, pipeline=pipeline))
        saved = np.maximum(np.asarray(all_there.device_bytes)[dense] - np.asarray(none.device_bytes), 1.0)
        moved = np.ceil(np.maximum(missing[dense], 0) / saved * (n_layers[dense] + 1)).astype(np.int64)
        for extra in (0, 1, 3):
            kept = np.clip(n_layers[dense] - moved - extra, 0, n_layers[dense])
            yield rows, places(len(dense), layers=kept, pipeline=pipeline)
