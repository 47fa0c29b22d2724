"""What Gemma 3n and 4 say layer by layer: whose cache a layer reads, embeddings of its own, streams, sparse gates."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from modeldb.errors import BrokenFile, UnsupportedModel
from runner.keys import Keys

# of Gemma 3n, where its file does not say: llama.cpp's src/models/gemma3n.cpp and llama-hparams.h fix them
OWN_CACHES, SPARSE_LAYERS, DEVIATIONS = 20, 10, 1.6448533535003662
WIDTH, STREAMS = 256, 4
MAX_WIDTH = 1 << 16


@dataclass(frozen=True, slots=True)
class Embedded:
    """Embeddings of `width` numbers (0: none) for each of `n_layers` layers (of a whole model, where a few of them run
    alone), and whether the residual has several `streams`, of which layers read the first."""

    width: int = 0
    n_layers: int = 0
    streams: bool = False


def sizes(keys: Keys, n_layers: int) -> Embedded:
    """Raises UnsupportedModel for other streams than Gemma 3n's four."""
    streamed = keys.architecture == "gemma3n"
    width = keys.count("embedding_length_per_layer_input", WIDTH if streamed else 0)
    n = keys.count("embedding_layers", n_layers)
    if not (n >= n_layers and 0 <= width <= MAX_WIDTH):
        raise BrokenFile(f"{keys.name}: embeddings of {width} numbers for {n} of {n_layers} layers")
    if not streamed:
        return Embedded(width, n)
    streams, active = keys.count("altup.num_inputs", STREAMS), keys.count("altup.active_idx", 0)
    if streams != STREAMS or active or not width:
        raise UnsupportedModel(
            f"{keys.name}: {streams} streams, of which layers read number {active}, are not supported by the runner"
        )
    return Embedded(width, n, streams=True)


def sources(keys: Keys, windows: tuple[int, ...]) -> tuple[int, ...]:
    """The layer whose cache each layer reads. The last layers that keep one serve all behind them: the last windowed
    one those with a window (llama.cpp, llama-model.cpp). `attention.cache_layers` says it in the metadata of a sampled
    run. Raises BrokenFile."""
    n = len(windows)
    shared = keys.count(
        "attention.shared_kv_layers", max(0, n - OWN_CACHES) if keys.architecture == "gemma3n" else 0
    )
    first = n - shared
    found = keys.by_layer("attention.cache_layers", n) if keys.get("attention.cache_layers") else tuple(
        i if i < first else first - (2 if windows[i] else 1) for i in range(n)
    )  # fmt: skip
    for i, source in enumerate(found):
        if not 0 <= source <= i or found[source] != source or windows[source] != windows[i]:
            raise BrokenFile(
                f"{keys.name}: layer {i} reads the cache of layer {source}, which keeps none like it"
            )
    return found


def deviations(keys: Keys, n_layers: int) -> tuple[float, ...]:
    """How far above their mean the activations of each layer's gate must lie; 0 where all count. Raises BrokenFile."""
    if keys.architecture != "gemma3n":
        return (0.0,) * n_layers
    usual = tuple(DEVIATIONS if i < SPARSE_LAYERS else 0.0 for i in range(n_layers))
    stated = keys.get("activation_sparsity_scale")
    if not isinstance(stated, (list, tuple)):
        return usual
    found = keys.by_layer("activation_sparsity_scale", n_layers)
    if any(isinstance(v, bool) or not isinstance(v, (int, float)) or v != v for v in found):
        raise BrokenFile(f"{keys.name}: metadata key `gemma3n.activation_sparsity_scale` is {found!s:.60}")
    return tuple(float(v) if isfinite(v) else 0.0 for v in found)
