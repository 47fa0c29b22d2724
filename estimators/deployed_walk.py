"""The walk of a deployment: remembered per model and scheme, scaled to the file's size, as its engine runs it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache

from estimators.deployment import Deployment
from estimators.efficiency import REFERENCE_YEAR
from estimators.walk import Walk, walk
from modeldb.model import Model
from modeldb.scheme import Scheme

#: TensorRT-LLM's C++ sessions attend to everything unless given `max_attention_window_size` (its GPT attention
#: page); engines built from PyTorch, the default since 1.0 (2025), read the window from the model.
WINDOWS_YEAR = 2025.0


@dataclass(frozen=True, eq=False, slots=True)
class _Pair:
    """A model and a scheme that compare by the key beside them."""

    model: Model
    scheme: Scheme

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Pair)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=4096)
def _walk_of(key: tuple[int, str], held: _Pair) -> Walk:
    return walk(held.model, held.scheme)


def known_walk(model: Model, scheme: Scheme) -> Walk:
    """`walk`, remembered per model object and scheme (hashing a whole model costs more than the look-up)."""
    return _walk_of((id(model), scheme.id), _Pair(model, scheme))


def corrected(w: Walk, weights_bytes: float | None) -> Walk:
    """A walk whose stored bytes add up to what the file reports."""
    if not weights_bytes or not w.total_bytes:
        return w
    kept = w.total_bytes - w.tower_bytes
    scale = weights_bytes / kept
    if not 0.5 < scale < 2.0:
        return w
    names = ("embedding", "head", "mixer", "dense", "expert", "shared", "other", "idle", "total")
    values = {f.name: getattr(w, f.name) for f in fields(w)}
    return Walk(**values | {f"{n}_bytes": values[f"{n}_bytes"] * scale for n in names})


def as_run(w: Walk, d: Deployment) -> Walk:
    """A walk as this engine runs it: windowed layers see everything where it does not know their window."""
    if d.engine != "trt-llm" or (d.settings.year or REFERENCE_YEAR) >= WINDOWS_YEAR or not w.n_window_layers:
        return w
    return replace(
        w,
        n_full_layers=w.n_full_layers + w.n_window_layers,
        n_window_layers=0.0,
        kv_k_full=w.kv_k_full + w.kv_k_window,
        kv_v_full=w.kv_v_full + w.kv_v_window,
        kv_k_window=0.0,
        kv_v_window=0.0,
        again_full=w.again_full + w.again_window,
        again_window=0.0,
        attention_flops_full=w.attention_flops_full + w.attention_flops_window,
        decode_attention_flops=w.decode_attention_flops + w.attention_flops_window,
        attention_flops_window=0.0,
        window_tokens=0.0,
    )
