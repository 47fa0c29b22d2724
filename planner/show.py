"""`plan show`: a model, from the catalogue or a file: layers, parameters, caches, bytes per scheme,
evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from modeldb.errors import ModelError
from modeldb.model import Model
from modeldb.scheme import Scheme
from planner import stock, units


@dataclass(frozen=True)
class Shown:
    """A model with its sizes. `scheme` is that of the file it was read from, else None."""

    model: Model
    scheme: Scheme | None
    parameters: float
    active_parameters: float
    layers: tuple[tuple[str, int], ...]
    caches: tuple[tuple[str, int], ...]
    cache_bytes: tuple[tuple[int, float], ...]  # (context in tokens, bytes of an f16 cache)
    # (scheme, weights in bytes, file in bytes; 0 where left open)
    schemes: tuple[tuple[str, float, float], ...]


CONTEXTS = (4096, 32768, 131072)


def describe(name: str) -> Shown:
    """What is known of a model. Errors: UnknownModel, AmbiguousModel, UnsupportedModel, BrokenFile."""
    from estimators.walk import walk
    from modeldb import schemes

    model, scheme = stock.resolve(name)
    base = walk(model, scheme or schemes.get("bf16"))
    sizes = (
        [(scheme.label or scheme.id, base.total_bytes, base.file_bytes)] if scheme else list(_sizes(model))
    )
    return Shown(
        model,
        scheme,
        base.total_params,
        base.active_params,
        tuple(Counter(_layer(block) for block in model.blocks).most_common()),
        tuple(Counter(cache.kind for cache in model.caches()).most_common()),
        tuple(
            (n, _cache_bytes(model, n))
            for n in CONTEXTS
            if model.max_context is None or n <= model.max_context
        ),
        tuple(sizes),
    )


def _sizes(model: Model) -> Iterator[tuple[str, float, float]]:
    """(scheme, weights, file) of the usual schemes that the model can be stored in."""
    from estimators.walk import walk
    from modeldb import schemes

    for names in stock.USUAL.values():
        for name in names:
            if name in stock.EXPERTS_ONLY and "mxfp4" not in model.native_dtype:
                continue
            try:
                sums = walk(model, schemes.get(name))
            except ModelError:
                continue
            yield name, sums.total_bytes, sums.file_bytes


def _layer(block: Any) -> str:
    """`Attention + Experts`."""
    parts = [type(x).__name__ for x in (*block.mixers, *block.feed_forwards)]
    windows = {w for m in block.mixers if (w := getattr(m, "window_tokens", None))}
    return " + ".join(parts) + "".join(f", window {w}" for w in sorted(windows))


def _cache_bytes(model: Model, context: int) -> float:
    """Bytes of one sequence's caches with 16-bit elements (states in 32 bits), before any engine's
    rounding."""
    total = 0.0
    for cache in model.caches():
        tokens = min(context, cache.window_tokens) if cache.window_tokens else context
        total += 2.0 * (cache.k_elements + cache.v_elements + cache.index_elements) * tokens
        total += 4.0 * cache.state_elements
    return total


def text(s: Shown) -> str:
    """For a person."""
    m = s.model
    active = (
        f", {units.format_parameters(s.active_parameters)} active"
        if s.active_parameters < 0.9 * s.parameters
        else ""
    )
    lines = [
        f"{m.name or m.id} ({m.id}){' from ' + m.source if s.scheme and m.source else ''}",
        f"  {'family':<12} {m.family or '-'}, {m.modality}, architecture {m.architecture or m.model_type}",
        f"  {'parameters':<12} {units.format_parameters(s.parameters)}{active} ({s.parameters:.0f})",
        f"  {'context':<12} {units.format_tokens(m.max_context) if m.max_context else 'not limited'}",
        f"  {'licence':<12} {m.licence or 'unknown'}, released {m.release_date or 'unknown'}",
        f"  {'layers':<12} " + ", ".join(f"{n} x {kind}" for kind, n in s.layers),
        f"  {'width':<12} {m.hidden_size}, vocabulary {m.vocab_size}{', tied' if m.tied_embeddings else ''}",
        f"  {'cache':<12} " + (", ".join(f"{n} {kind}" for kind, n in s.caches) or "none"),
    ]
    lines += [
        f"    {units.format_tokens(n):>6} tokens {units.format_bytes(size):>10} in f16"
        for n, size in s.cache_bytes
    ]
    lines.append("  weights")
    for name, weights, file in s.schemes:
        download = f", file {units.format_bytes(file)}" if file else ""
        lines.append(f"    {name:<18} {units.format_bytes(weights):>10}{download}")
    if m.evidence:
        lines.append("  published scores (protocols differ; `plan models --task` combines them)")
        lines += [f"    {e.benchmark:<28} {e.score:>6.3g}  {e.kind}  [{e.source}]" for e in m.evidence]
    return "\n".join(lines)


def document(s: Shown) -> dict[str, Any]:
    """The same as JSON values."""
    m = s.model
    return {
        "id": m.id,
        "hf_id": m.hf_id,
        "family": m.family,
        "base": m.base,
        "modality": m.modality,
        "architecture": m.architecture,
        "parameters": s.parameters,
        "active_parameters": s.active_parameters,
        "max_context": m.max_context,
        "licence": m.licence,
        "released": m.release_date,
        "hidden_size": m.hidden_size,
        "vocab_size": m.vocab_size,
        "n_layers": m.n_layers,
        "layers": [{"kind": kind, "count": n} for kind, n in s.layers],
        "caches": [{"kind": kind, "count": n} for kind, n in s.caches],
        "cache_bytes": [{"context_tokens": n, "bytes": size} for n, size in s.cache_bytes],
        "weights": [{"scheme": name, "bytes": w, "file_bytes": f} for name, w, f in s.schemes],
        "evidence": [asdict(e) for e in m.evidence],
        "source": m.source,
    }
