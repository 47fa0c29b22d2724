"""Where a prompt of the bundled runner spends its time.

Most operations of the runner's prompts were timed one by one on nineteen models (Zen 5, 512-bit vectors, two threads,
2026); what is stated without a source below was found there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil

from estimators import reference_compressed, reference_sparse, reference_states
from estimators.deployed_walk import known_walk
from estimators.deployment import Deployment
from estimators.reference_matrices import matrices, most_alike
from estimators.reference_step import STEP_S, USUAL_WAITS, apart, attention_heads, executed, prefixed, waits
from hwdb.device import KernelRates
from modeldb.layers import (
    Attention,
    Block,
    CompressedAttention,
    Convolution,
    Experts,
    LatentAttention,
    LinearAttention,
    Mixer,
    StateSpace,
)
from modeldb.model import Model

#: Tokens that a kernel multiplies together, and fewest of a prompt's or an expert's last block.
BLOCK, THIRD = 12, 4
TIMED_TOKENS = 512  # for which `plan measure` times products
FEW = 4  # tokens of an expert below which it is multiplied token by token, as in a step
MORE = 0.35  # what each token more of those takes, of the first
#: Variance of an expert's tokens beyond that of chance, over the square of their mean: 0.02 to 1.2 in eleven mixtures
#: of synthetic weights.
UNEVEN = 0.2
TILE_ROWS, TILE_COLUMNS = 96, 32  # (token, head) pairs that share a tile of keys, and its keys
#: Of a score's softmax and masks, as long as so many FLOPs of its products: heads of 64 and 128 numbers.
SCORE_FLOPS = 362
TIMED_HEAD = 128  # numbers of a head for which `plan measure` times attention

#: What a (token, head) pair takes beside its scores (packing, the sum of values), as so many positions.
ROW_POSITIONS = 80

#: How much longer a product of the indexer takes than one of a prompt's attention, which shares keys that were read,
#: and FLOPs of a score's sum over heads.
INDEX_SLOWER, INDEX_FLOPS = 2, 30

#: What passes over a number take, as FLOPs of attention.
GATE, PACK, NORM, ROPE, COMBINE, CONVOLVE, UNIT, SLICE = 100, 55, 75, 50, 30, 120, 200, 140
ROUTE = 1000  # of each expert, for each that is chosen: by one thread


def seconds(d: Deployment, own: KernelRates, bandwidth: float, unpacking: Mapping[str, tuple[float, float]],
            batch: int) -> dict[str, float]:  # fmt: skip
    """Seconds by term, before their factors: products of all tokens with every weight, those of the last layer's
    feed-forward and of the head with one; attention; states; passes over vectors. `unpacking`: see `block_costs`."""
    w, n = known_walk(d.model, d.scheme), d.workload.prompt_tokens
    share = w.experts_per_token / max(w.n_experts, 1)
    batches = [(batch, n // batch), (n % batch, 1 if n % batch else 0)]
    found = dict.fromkeys(("products", "experts", "weights", "last"), 0.0)
    for m in matrices(d, own):
        if m.last:
            found["last"] += m.n_bytes * (share if m.experts else 1.0) / m.stream
            continue
        unpack, block = block_costs(unpacking, m.like, m.experts)
        each = 2.0 * m.count / m.product  # seconds of a token
        for tokens, times in batches:
            if m.experts:
                alone = m.n_bytes / m.stream / each  # tokens that take as long as to read the weights
                found["experts"] += times * each * _expert_tokens(tokens * share, alone, unpack, block)
            else:
                found["products"] += times * each * (unpack + block * _blocks(tokens))
                found["weights"] += times * m.n_bytes / bandwidth
    n_batches = sum(times for _, times in batches)
    farther = (1 + apart(own)) / 2  # numbers go from core to core
    return found | {
        "attention": _attention_s(d.model, n, own.attention_flops),
        "states": n * reference_states.prompt_flops(d.model) / own.attention_flops,
        "vectors": n * sum(map(_passes(d.model), executed(d.model))) / own.attention_flops * farther,
        "layers": n_batches * own.layer_s * sum(map(waits, executed(d.model))) / USUAL_WAITS,
        "step": STEP_S,
    }


def block_costs(unpacking: Mapping[str, tuple[float, float]], fmt: str, experts: bool) -> tuple[float, float]:
    """What unpacking a matrix takes, and a block of tokens, as tokens of a batch of `TIMED_TOKENS`, where both take
    what was timed. Experts' blocks lie in nearer caches than a whole batch."""
    unpack, block = unpacking[most_alike(fmt, unpacking)]
    return unpack, block if experts else (TIMED_TOKENS - unpack) / _blocks(TIMED_TOKENS)


def _blocks(tokens: int) -> float:
    return ceil(tokens / THIRD) * THIRD / BLOCK


def _expert_tokens(mean: float, alone: float, unpack: float, block: float) -> float:
    """What an expert takes, on average over experts, as tokens of a large batch. Its tokens have a negative binomial
    distribution; below `FEW` of them weights are read as in a step."""
    size = 1 / UNEVEN
    chance, left, total, m = (size / (size + mean)) ** size, 1.0, 0.0, 0
    while left > 1e-6 and m < 20 * mean + 100:
        if 0 < m < FEW:
            total += chance * alone * (1 + MORE * (m - 1))
        elif m:
            total += chance * (unpack + block * _blocks(m))
        left -= chance
        chance *= (m + size) / (m + 1) * mean / (mean + size)
        m += 1
    return total


# -- attention -----------------------------------------------------------------------------------------------


def _attention_s(model: Model, n: int, flops: float) -> float:
    """Seconds of all scores. Tiles reach beyond what a token sees, by half of a tile's tokens and of its keys."""
    timed = 4 * TIMED_HEAD + SCORE_FLOPS
    total = 0.0
    for heads, group, widths, window in attention_heads(model):
        beyond = max(1.0, TILE_ROWS / group) / 2 + TILE_COLUMNS / 2 + ROW_POSITIONS
        seen = float(n) if prefixed(model) else _mean_seen(n, window or n)
        total += heads * (seen + beyond) * (2 * widths + SCORE_FLOPS)
    for far in reference_compressed.layers(model):  # prompts look at all rows, chosen or not
        rows = _mean_seen(n, n) / far.ratio
        total += far.n_heads * rows * (4 * far.head_dim + SCORE_FLOPS)
        total += far.n_index_heads * rows * (2 * far.index_dim * INDEX_SLOWER + INDEX_FLOPS)
    for m in reference_sparse.layers(model):  # the indexer takes tokens one by one
        keys = _mean_seen(n, n) / reference_sparse.pool(m)
        total += m.n_index_heads * keys * (2 * m.index_dim * INDEX_SLOWER + INDEX_FLOPS)
    return n * total / timed * 4 * TIMED_HEAD / flops


def _mean_seen(n: int, window: float) -> float:
    """Tokens that a layer sees, on average over a prompt."""
    near = min(float(n), float(window))
    return near - near * near / (2 * n) if n else 0.0


# -- passes over vectors -------------------------------------------------------------------------------------


def _passes(model: Model) -> Callable[[Block], float]:
    """Of a block: norms, rotations, activations, packing and the like of one token, as FLOPs of attention."""
    hidden = model.hidden_size

    def of(block: Block) -> float:
        return sum(_of_mixer(m, hidden) for m in block.mixers) + sum(
            _of_experts(f, hidden) if isinstance(f, Experts)
            else (NORM + PACK) * hidden + (GATE + PACK) * f.inner for f in block.feed_forwards
        )  # fmt: skip

    return of


def _of_mixer(m: Mixer, hidden: int) -> float:
    before = (NORM + PACK) * hidden
    match m:
        case Attention():
            q, k = m.n_heads * m.head_dim, m.n_kv_heads * m.head_dim
            normed, gated = (NORM if m.qk_norm else 0), (GATE + SLICE if m.gate == "double_q" else 0)
            return (
                before + (ROPE + normed) * (q + k) + COMBINE * k + PACK * m.n_heads * m.value_dim + gated * q
            )
        case LatentAttention():
            heads = m.n_heads
            low = (NORM + 2 * PACK) * m.q_rank + (NORM + COMBINE) * m.kv_rank
            apart = (SLICE + ROPE) * heads * (m.nope_dim + m.rope_dim)
            return (
                before
                + PACK * hidden
                + low
                + apart
                + PACK * heads * (2 * m.nope_dim + 2 * m.kv_rank + m.value_dim)
            )
        case CompressedAttention():
            q, reach = m.n_heads * m.head_dim, 2 if m.n_index_heads else 1
            rows = CONVOLVE * reach * (m.head_dim + m.index_dim) if m.ratio else 0.0
            index = (ROPE + NORM) * m.n_index_heads * m.index_dim
            low = (NORM + 2 * PACK) * m.q_rank + PACK * m.o_groups * m.o_rank
            return before + PACK * hidden + low + (NORM + 2 * ROPE + PACK) * q + rows + index
        case StateSpace():
            channels = m.inner + 2 * m.n_groups * m.state
            return before + CONVOLVE * channels + (GATE + NORM * m.normed + PACK) * m.inner
        case LinearAttention(kind="lightning"):
            inner = m.n_v_heads * m.v_dim
            return before + GATE * 3 * inner + (GATE + NORM + PACK) * inner + COMBINE * hidden
        case LinearAttention():
            keys, inner = 2 * m.n_k_heads * m.k_dim, m.n_v_heads * m.v_dim
            return before + CONVOLVE * (keys + inner) + UNIT * keys + (GATE + NORM + PACK) * inner
        case Convolution():
            return before + (GATE + CONVOLVE + PACK) * hidden
    return before


def _of_experts(f: Experts, hidden: int) -> float:
    """Tokens are packed for the router, in order, and once more for each of their experts."""
    k, width = f.per_token, f.latent or hidden
    own = (
        (NORM + 2 * PACK) * hidden + PACK * width * k + (GATE + 2 * PACK) * f.inner * k + COMBINE * width * k
    )
    shared = (PACK * hidden + (GATE + PACK) * f.shared_inner) if f.shared_inner else 0.0
    return own + shared + ROUTE * f.n_experts * k
