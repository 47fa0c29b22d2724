"""The caches that each layer kind keeps, per sequence."""

from __future__ import annotations

from collections.abc import Iterator

from modeldb.layers import (
    Attention,
    CompressedAttention,
    Convolution,
    CrossAttention,
    LatentAttention,
    LinearAttention,
    Mixer,
    StateSpace,
)
from modeldb.tensor import Cache


def mixer_caches(mixer: Mixer, layer: int, hidden: int) -> Iterator[Cache]:
    """The caches one mixer keeps."""
    match mixer:
        case Attention() if not mixer.shares_cache:
            kind = "full" if mixer.window_tokens is None else "chunk" if mixer.chunked else "window"
            yield Cache(
                layer,
                kind,  # type: ignore[arg-type]
                mixer.n_kv_heads * mixer.head_dim,
                mixer.n_kv_heads * mixer.value_dim,
                mixer.window_tokens,
                index_elements=mixer.index_dim,
            )
        case LatentAttention():
            yield Cache(layer, "latent", mixer.kv_rank + mixer.rope_dim, index_elements=mixer.index_dim)
        case CompressedAttention():
            yield Cache(layer, "window", mixer.head_dim, window_tokens=mixer.window_tokens)
            if r := mixer.ratio:
                yield Cache(layer, "full", mixer.head_dim // r, index_elements=mixer.index_dim // r,
                            state_elements=_kept_elements(mixer))  # fmt: skip
        case StateSpace() | LinearAttention() | Convolution():
            yield Cache(layer, "state", state_elements=state_elements(mixer, hidden))
        case CrossAttention():
            width = mixer.n_kv_heads * mixer.head_dim
            yield Cache(layer, "cross", width, width, mixer.n_tokens or None)


def _kept_elements(m: CompressedAttention) -> int:
    """Numbers (float32) that tokens leave for compressed rows to come: values and scores. Rows of layers with an
    indexer reach over the tokens of the row before (llama.cpp 0c1e57098, src/llama-kv-cache-dsv4.cpp)."""
    reach = 2 if m.n_index_heads else 1
    return 2 * m.ratio * reach**2 * (m.head_dim + m.index_dim)


def state_elements(mixer: StateSpace | LinearAttention | Convolution, hidden: int) -> int:
    """Numbers a recurrent mixer keeps per sequence: the convolution's tail and the state."""
    match mixer:
        case StateSpace():
            groups = mixer.n_groups if mixer.version == 2 else 0
            tail = (mixer.conv_kernel - 1) * (mixer.inner + 2 * groups * mixer.state)
            return tail + mixer.state * mixer.inner
        case Convolution():
            return (mixer.conv_kernel - 1) * hidden
        case LinearAttention():
            keys, values = mixer.n_k_heads * mixer.k_dim, mixer.n_v_heads * mixer.v_dim
            tail = max(mixer.conv_kernel - 1, 0) * (2 * keys + values)
            return tail + mixer.k_dim * values
