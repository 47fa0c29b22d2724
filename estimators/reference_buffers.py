"""Memory beside weights and cache that the bundled runner takes for a batch: what layers pass on, and packed copies of
what matrices read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from estimators import reference_compressed, reference_sparse, reference_states
from estimators.quantity import Quantity
from estimators.reference_step import executed
from modeldb.layers import Attention, CompressedAttention, Dense, Experts, LatentAttention
from modeldb.model import Model
from modeldb.scheme import Scheme

BLOCK_TOKENS = 12  # that a kernel multiplies at a time, where vectors have 512 bits; 6 elsewhere
PACKED_BYTES, FLOAT_BYTES = 1.5, 4  # of an input as int8 with its scales and sums, and as float32
FLOATS = ("F32", "F16", "BF16")
PAIR_BYTES = 3 * 8  # pairs by expert: three lists
STACKED = ("_exps.weight", "attn_k_b.weight", "attn_v_b.weight")  # one matrix for each expert, or head
SPREAD = 1.3  # other widths of vectors, threads and alignment


def activation_bytes(model: Model, scheme: Scheme, n_batch: int, n_context: int = 0) -> Quantity:
    """Layers of a model share buffers by what they hold, so each is as large as the layer that needs most asks for.
    Inputs of matrices are packed; those of experts a second time, by expert."""
    held: dict[str, float] = {"stream": 2.0 * model.hidden_size}
    pairs = experts = 0
    for block in executed(model):
        # streams twice, and what a half reads and makes
        if streams := dict(block.extra_params).get("hc_attn_fn.weight"):
            width = streams[0] if isinstance(streams, tuple) else 0
            held["streams"] = 2.0 * width + 4.0 * model.hidden_size
        if block.n_norms > 2:  # what is normed once more
            held["branches"] = 2.0 * model.hidden_size
        for name, floats in _buffers(block.mixers, block.feed_forwards, model.hidden_size):
            held[name] = max(held.get(name, 0.0), floats)
        for f in block.feed_forwards:
            if isinstance(f, Experts):
                pairs, experts = max(pairs, f.per_token), max(experts, f.n_experts)
    held["recurrent"] = reference_states.floats(model)[1]
    held["layer inputs"] = _layer_inputs(model)
    best = 4.0 * (n_batch * sum(held.values()) + model.vocab_size)
    best += PAIR_BYTES * max(n_batch * pairs, experts) + 4.0 * n_batch * experts
    best += _packed_bytes(model, scheme, n_batch, pairs, experts)
    # what each token sees, and rows of what one sees
    for sparse in islice(reference_sparse.layers(model), 1):
        masks = float(n_batch * n_context)
        if isinstance(sparse, Attention):
            masks *= sparse.n_kv_heads / sparse.index_block
        best += masks + 2 * min(sparse.index_top_k, n_context) * reference_sparse.row_elements(sparse)
    for far in reference_compressed.layers(model):
        if far.n_index_heads:
            rows = n_context // far.ratio
            best += n_batch * rows + 2 * min(far.index_top_k, rows) * far.head_dim
            break
    return Quantity(best / SPREAD, best, best * SPREAD, "derived")


def _layer_inputs(model: Model) -> float:
    """Numbers per token of the embeddings that layers have of their own: looked up, projected, and one layer's."""
    width = next((t.shape[0] for t in model.tensors() if t.name == "per_layer_proj_norm.weight"), 0)
    return (2.0 * model.n_layers + 1.0) * width + (model.hidden_size if width else 0.0)


def _buffers(mixers: tuple, feed_forwards: tuple, hidden: int) -> Iterator[tuple[str, float]]:
    """(name, numbers per token) of what a layer passes on; layers without a name of their own share it."""
    for m in mixers:
        match m:
            case Attention():
                own = m.n_heads * m.head_dim
                yield "queries, keys, values", own + m.n_kv_heads * (m.head_dim + m.value_dim)
                yield "mixed", m.n_heads * m.value_dim
            case LatentAttention():
                yield "queries", m.n_heads * (m.nope_dim + m.rope_dim) + m.q_rank
                yield "latent", m.kv_rank + m.rope_dim
                yield "absorbed", m.n_heads * (m.kv_rank + m.rope_dim + m.nope_dim)
                yield "latent out", m.n_heads * m.kv_rank
                yield "mixed", m.n_heads * m.value_dim
                yield "indexer", m.n_index_heads * (m.index_dim + 1) + m.index_dim
            case CompressedAttention():
                width = (2 if m.n_index_heads else 1) * (m.head_dim + m.index_dim)
                yield "queries", m.n_heads * m.head_dim + m.q_rank + m.head_dim
                yield "compressed", 2 * width * bool(m.ratio)
                yield "mixed", m.n_heads * m.head_dim
                yield "mixed low", m.o_groups * m.o_rank
                yield "indexer", m.n_index_heads * (m.index_dim + 1)
    for f in feed_forwards:
        match f:
            case Dense():
                yield "inner", f.inner * f.n_matrices
            case Experts():
                yield "experts", f.per_token * (f.inner * f.n_matrices + (f.latent or hidden) + 1)
                yield "inner", f.shared_inner * f.n_matrices
                yield "shared out", (hidden if f.shared_inner else 0) + 2 * f.latent


def _packed_bytes(model: Model, scheme: Scheme, n_batch: int, pairs: int, experts: int) -> float:
    """The widest input of any matrix, once for the batch; that of stacked matrices for every (token, expert) or
    (token, head), and again in blocks that share one."""
    from modeldb.schemes import assign

    rows = -(-n_batch // BLOCK_TOKENS) * BLOCK_TOKENS
    plain = by_expert = by_head = 0
    floats = False
    for t, f in assign(scheme, model):
        if len(t.shape) < 2 or t.name.endswith("token_embd.weight") or t.role in ("draft", "idle"):
            continue
        plain = max(plain, t.shape[0])
        if t.name.endswith(STACKED):
            floats |= f.id in FLOATS
            if "_exps." in t.name:
                by_expert = max(by_expert, t.shape[0])
            else:
                by_head = max(by_head, t.shape[0] * t.shape[2])
    for block in model.blocks:
        for m in block.mixers:
            if isinstance(m, CompressedAttention):  # matrices of groups lie side by side
                by_head = max(by_head, m.n_heads * m.head_dim)
    once = max(rows * plain, n_batch * by_head, n_batch * pairs * by_expert)
    again = max((n_batch * pairs + experts * BLOCK_TOKENS) * by_expert, (n_batch + BLOCK_TOKENS) * by_head)
    return once * (PACKED_BYTES + FLOAT_BYTES) + again * (PACKED_BYTES + FLOAT_BYTES * floats)
