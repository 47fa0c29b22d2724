"""Which layers of a configuration are of which kind: patterns of mixers and of feed-forwards, one letter
per layer."""

from __future__ import annotations

from modeldb.errors import BrokenFile, UnsupportedModel
from modeldb.hf_keys import Config

# names in `layer_types` and its older relatives -> letter of Shape.layer_pattern
MIXERS = {
    "full_attention": "F",
    "attention": "F",
    "global_attention": "F",
    "indexed_attention": "F",
    "global": "F",
    "sliding_attention": "S",
    "sliding_window_attention": "S",
    "local": "S",
    "chunked_attention": "C",
    "linear_attention": "L",
    "mamba": "M",
    "mamba2": "M",
    "conv": "K",
    "short_conv": "K",
    "compressed_sparse_attention": "P",
    "heavily_compressed_attention": "Q",
}
FEED_FORWARDS = {"dense": "D", "sparse": "E", "moe": "E", "hash_moe": "E"}
MAX_LAYERS = 4096


def compress(letters: str) -> str:
    """`SSSFSSSF` -> `SSSF*2`: the notation of Shape, shortest period first."""
    n = len(letters)
    for period in range(1, n // 2 + 1):
        if n % period == 0 and letters == letters[:period] * (n // period):
            return f"{letters[:period]}*{n // period}"
    return letters


def named(c: Config, key: str, table: dict[str, str], n_layers: int) -> str:
    """Letters of a list of names, one per layer; "" when the list is absent."""
    names = c.items(key)
    if not names:
        return ""
    if len(names) != n_layers:
        raise BrokenFile(f"{c.name}: `{key}` has {len(names)} entries for {n_layers} layers")
    for name in names:
        if not isinstance(name, str) or name not in table:
            raise UnsupportedModel(
                f"{c.name}: `{key}` names {name!r:.40}, a kind of layer that is not supported yet"
            )
    return "".join(table[name] for name in names)


def windowed(c: Config, n_layers: int, window: int, period: int | None) -> str:
    """F and S by `layer_types`, else by a period (every n-th layer full; 0: all slide), else all full."""
    pattern = c.get("sliding_window_pattern", "_sliding_window_pattern", "global_attn_every_n_layers")
    if letters := named(c, "layer_types", MIXERS, n_layers):
        return letters
    if isinstance(pattern, str):  # EXAONE 4: "LLLG"
        if not pattern or set(pattern) - {"L", "G"}:
            raise UnsupportedModel(f"{c.name}: `sliding_window_pattern` {pattern!r:.40} is not understood")
        return "".join("S" if pattern[i % len(pattern)] == "L" else "F" for i in range(n_layers))
    if pattern is not None:
        period = c.count("sliding_window_pattern", "_sliding_window_pattern", "global_attn_every_n_layers")
    if not window or period is None:
        return "F" * n_layers
    if period == 0:
        return "S" * n_layers
    return "".join("F" if (i + 1) % period == 0 else "S" for i in range(n_layers))


def qwen_windows(c: Config, n_layers: int, window: int) -> str:
    """Qwen2: with `use_sliding_window`, layers from `max_window_layers` on slide."""
    if letters := named(c, "layer_types", MIXERS, n_layers):
        return letters
    first = c.count("max_window_layers", default=n_layers)
    return "F" * min(first, n_layers) + "S" * max(0, n_layers - first) if window else "F" * n_layers


def feed_forwards(c: Config, n_layers: int, n_experts: int) -> str:
    """D and E per layer, by whichever of the usual keys the configuration has."""
    keys = (
        "mlp_layer_types",
        "first_k_dense_replace",
        "num_dense_layers",
        "moe_layer_freq",
        "mlp_only_layers",
        "decoder_sparse_step",
    )
    if not n_experts:
        c.understood.update(keys)
        return "D" * n_layers
    first = c.count("first_k_dense_replace", "num_dense_layers", default=0)
    step = _step(c, n_layers)
    if letters := named(c, "mlp_layer_types", FEED_FORWARDS, n_layers):
        return letters
    if isinstance(step, list):
        return "".join("E" if x else "D" for x in step)
    dense = set(c.numbers("mlp_only_layers"))
    sparse_step = c.count("decoder_sparse_step", default=1) or 1
    return "".join(
        "E" if i >= first and i % step == 0 and (i + 1) % sparse_step == 0 and i not in dense else "D"
        for i in range(n_layers)
    )


def _step(c: Config, n_layers: int) -> int | list[int]:
    """`moe_layer_freq`: a period, or 0/1 for each layer."""
    if isinstance(c.get("moe_layer_freq"), list):
        flags = c.numbers("moe_layer_freq")
        if len(flags) != n_layers:
            raise BrokenFile(f"{c.name}: `moe_layer_freq` has {len(flags)} entries for {n_layers} layers")
        return flags
    return c.count("moe_layer_freq", default=1) or 1


def placed(n_layers: int, at: list[int], there: str, elsewhere: str) -> str:
    """`there` at the given layers."""
    chosen = set(at)
    return "".join(there if i in chosen else elsewhere for i in range(n_layers))
