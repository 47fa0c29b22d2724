"""Every deployment that may answer, priced in a few calls: model x scheme x cache type x engine x placement.

All columns are arrays with one entry per candidate; nothing loops over candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from estimators import estimate, formats
from estimators.table import DeploymentTable, PriceTable
from hwdb.device import Machine
from planner import deploy, engines, placement
from planner.errors import NothingFits, UsageError
from planner.request import Request
from planner.stock import Stock

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Cache types offered without `--kv`, per container: exact first.
USUAL_KV = {"gguf": ("f16", "q8_0"), "safetensors": ("f16", "fp8"), "mlx": ("f16", "q8_0")}


#: Backends without kernels for 4-bit weights, and what they run (Neuron SDK and Gaudi documentation of vLLM).
PLAIN_BACKENDS = {"neuron": frozenset({"bf16", "f16", "fp8"}), "hpu": frozenset({"bf16", "f16", "fp8"})}
MANY_USERS = 8  # from here on, data-centre cards are served by a batching engine


@dataclass(frozen=True)
class Shared:
    """What the candidates of a group share: the question, the stock that `pair` indexes, where they run."""

    request: Request
    stock: Stock
    machine: Machine
    engine: str
    backend: str
    kv_types: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Candidates that share a machine, an engine and a backend. `pair` indexes the stock, `kv` indexes
    `kv_types`."""

    machine: Machine
    engine: str
    backend: str
    kv_types: tuple[str, ...]
    pair: Integers
    kv: Integers
    place: placement.Places
    price: PriceTable

    def __len__(self) -> int:
        return len(self.pair)

    def take(self, rows: Integers) -> Group:
        return Group(
            self.machine, self.engine, self.backend, self.kv_types, self.pair[rows], self.kv[rows],
            self.place.take(rows), take_price(self.price, rows),
        )  # fmt: skip


def take_price(price: PriceTable, rows: Integers) -> PriceTable:
    """The prices at these rows."""
    return PriceTable(**{f.name: np.asarray(getattr(price, f.name))[rows] for f in fields(PriceTable)})


def join_price(parts: Sequence[PriceTable]) -> PriceTable:
    """Prices one after the other."""
    return PriceTable(
        **{
            f.name: np.concatenate([np.asarray(getattr(p, f.name)) for p in parts])
            for f in fields(PriceTable)
        }
    )


def usual_engines(request: Request, machine: Machine) -> tuple[ModuleType, ...]:
    """The engines worth a look on this machine, or those asked for.

    llama.cpp everywhere; MLX on Apple; vLLM where several users share data-centre or CUDA cards, or where the
    cards are of the data centre; SGLang and TensorRT-LLM only when asked, since they are priced like it.
    """
    backend = deploy.backend_of(machine)
    if request.engines:
        chosen = tuple(engines.get(name) for name in request.engines)
        if not any(backend in e.BACKENDS for e in chosen):
            names = ", ".join(request.engines)
            can = ", ".join(e.NAME for e in engines.ENGINES if backend in e.BACKENDS)
            raise UsageError(f"{names} does not run on {machine.name} ({backend})", f"choose one of {can}")
        return tuple(e for e in chosen if backend in e.BACKENDS)
    wanted = ["llama.cpp"]
    if backend == "metal":
        wanted.append("mlx")
    datacentre = any(d.memory_type.startswith("HBM") for d in machine.devices)
    if backend in ("cuda", "rocm") and (datacentre or request.users > 1):
        wanted.append("vllm")
    if backend in ("neuron", "hpu") or (datacentre and request.users >= MANY_USERS):
        wanted = ["vllm"]
    usual = tuple(e for e in engines.ENGINES if e.NAME in wanted and backend in e.BACKENDS)
    found = usual or tuple(e for e in engines.ENGINES if backend in e.BACKENDS)[:1]
    if not found:
        raise NothingFits(f"no engine known here runs on {machine.name}", "plan hw lists other devices")
    return found


def price_all(request: Request, stock: Stock, machine: Machine) -> list[Group]:
    """All candidates on one machine, one group per engine. Where none of the usual engines can load what is asked
    (safetensors on a consumer's card), the first that can is taken."""
    groups = [
        g
        for e in usual_engines(request, machine)
        if (g := _of_engine(request, stock, machine, e)) is not None
    ]
    if groups or request.engines:
        return groups
    others = (_of_engine(request, stock, machine, engine) for engine in engines.ENGINES)
    found = next((g for g in others if g is not None), None)
    return [found] if found is not None else []


def _of_engine(request: Request, stock: Stock, machine: Machine, engine: ModuleType) -> Group | None:
    """What this engine may load of the stock; None where that is nothing."""
    backend = deploy.backend_of(machine)
    pairs = _runnable(stock, engine, backend) if backend in engine.BACKENDS else np.empty(0, dtype=np.int64)
    kv_types = _kv_types(request, stock, machine, engine, pairs) if len(pairs) else ()
    if not kv_types:
        return None
    return _group(Shared(request, stock, machine, engine.NAME, backend, kv_types), pairs)


def _runnable(stock: Stock, engine: ModuleType, backend: str) -> Integers:
    """Pairs whose container the engine reads, whose kernels the backend has and, for llama.cpp, whose
    architecture it knows."""
    families = PLAIN_BACKENDS.get(backend)
    readable = np.array(
        [s.container in engine.CONTAINERS and (not families or s.family in families) for s in stock.schemes],
        dtype=bool,
    )
    known = np.array(
        [bool(m.architecture) or "gguf" not in engine.CONTAINERS for m in stock.models], dtype=bool
    )
    if not len(stock):
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(readable[stock.scheme] & known[stock.model])


def _kv_types(
    request: Request, stock: Stock, machine: Machine, engine: ModuleType, pairs: Integers
) -> tuple[str, ...]:
    """The cache types asked for, or the usual ones, less those that are themselves why the engine refuses."""
    first = int(pairs[0])
    model, scheme = stock.models[stock.model[first]], stock.schemes[stock.scheme[first]]

    def refusal(kv: str) -> str:
        wish = deploy.Wish(engine=engine.NAME, kv_type_k=kv, kv_type_v=kv)
        return str(engine.refuses(deploy.deployment(model, scheme, machine, wish)))

    plain = refusal("f16")
    usual = USUAL_KV[engine.CONTAINERS[0]]
    return tuple(kv for kv in (request.kv or usual) if refusal(kv) == plain)


def _group(shared: Shared, pairs: Integers) -> Group:
    machine, engine, backend, kv_types = shared.machine, shared.engine, shared.backend, shared.kv_types
    pair = np.repeat(pairs, len(kv_types))
    kv = np.tile(np.arange(len(kv_types)), len(pairs))
    parts: list[tuple[Integers, Integers, placement.Places, PriceTable]] = []
    for place in placement.whole(machine, engine, len(pair)):
        parts.append((pair, kv, place, price(shared, pair, kv, place)))
    if placement.may_spill(machine, engine, backend):
        over = np.flatnonzero(~np.asarray(parts[0][3].fits) & (kv == 0))

        def cost(rows: Integers, place: placement.Places) -> PriceTable:
            return price(shared, pair[rows], kv[rows], place)

        walk = shared.stock.walk.take(pair[over])
        for rows, place in placement.spilled(cost, walk, over, len(machine.devices)):
            parts.append((pair[rows], kv[rows], place, cost(rows, place)))
    return Group(
        machine, engine, backend, kv_types,
        np.concatenate([p[0] for p in parts]),
        np.concatenate([p[1] for p in parts]),
        placement.join([p[2] for p in parts]),
        join_price([p[3] for p in parts]),
    )  # fmt: skip


def table(
    shared: Shared,
    pair: Integers,
    kv: Integers,
    place: placement.Places,
    context: Integers | int | None = None,
) -> DeploymentTable:
    """The deployments of these rows, as `estimators` wants them."""
    from modeldb.formats import kv as kv_format

    request, stock = shared.request, shared.stock
    kv_bytes = np.array([kv_format(name).bits_per_weight / 8 for name in shared.kv_types])
    walk = stock.walk.take(pair)
    classes = np.array([[formats.class_index(s), formats.class_index(s, 1)] for s in stock.schemes])
    return DeploymentTable(
        machine=shared.machine,
        engine=shared.engine,
        backend=shared.backend,
        walk=walk,
        format_class=classes[stock.scheme[pair], (walk.hidden_size % formats.BLOCK != 0).astype(int)],
        context_tokens=request.context if context is None else context,
        prompt_tokens=request.prompt,
        output_tokens=request.output,
        cached_tokens=request.cached,
        n_sequences=request.users,
        kv_k_bytes=kv_bytes[kv],
        kv_v_bytes=kv_bytes[kv],
        n_gpu_layers=place.n_gpu_layers,
        n_cpu_expert_layers=place.n_cpu_expert_layers,
        tensor_parallel=place.tensor_parallel,
        pipeline_parallel=place.pipeline_parallel,
        extra=_client(request, stock, pair),
    )


def _client(request: Request, stock: Stock, pair: Integers) -> dict[str, Any]:
    """Several users wait for each other; what that costs depends on the model, by name."""
    if request.users == 1:
        return {}
    ids = np.array([model.id for model in stock.models], dtype=object)
    kinds = np.array([formats.served_index(s) for s in stock.schemes])
    return {
        "client": "closed",
        "models": ids[stock.model[pair]],
        "served_formats": kinds[stock.scheme[pair]],
    }


def price(
    shared: Shared,
    pair: Integers,
    kv: Integers,
    place: placement.Places,
    context: Integers | int | None = None,
) -> PriceTable:
    """The price of these rows; every column is an array of their length."""
    # a class is everybody's, not the user's
    mine = None if shared.machine.origin == "class" else shared.request.mine
    found = estimate.price(table(shared, pair, kv, place, context), mine)
    return PriceTable(
        **{
            f.name: np.broadcast_to(np.asarray(getattr(found, f.name)), pair.shape)
            for f in fields(PriceTable)
        }
    )


def reprice(
    request: Request, stock: Stock, group: Group, machine: Machine, context: Integers | int | None = None
) -> PriceTable:
    """The same candidates on another machine, or at another context."""
    shared = Shared(request, stock, machine, group.engine, deploy.backend_of(machine), group.kv_types)
    return price(shared, group.pair, group.kv, group.place, context)
