"""The feed-forward of a layer, dense or of experts, as operations of a program."""

from __future__ import annotations

from math import exp, log1p

import numpy as np

from modeldb.errors import BrokenFile, UnsupportedModel
from runner import kernel_identity, kernel_ops, kernel_router, kernel_rows, kernel_streams
from runner.builder import SWIGLU_OAI_LIMIT, Builder, Groups
from runner.hyper import Hyper
from runner.weights import Weight

ACTIVATIONS = {
    "silu": kernel_ops.SILU,
    "gelu_tanh": kernel_ops.GELU_TANH,
    "swiglu_oai": kernel_ops.SWIGLU_OAI,
    "relu": kernel_ops.RELU,
    "relu_squared": kernel_ops.RELU_SQUARED,
}
ROUTERS = {
    "softmax": kernel_router.SOFTMAX,
    "softmax_of_chosen": kernel_router.SOFTMAX_OF_CHOSEN,
    "sigmoid": kernel_router.SIGMOID,
    "sqrt_softplus": kernel_router.SQRT_SOFTPLUS,
}


def add(b: Builder, i: int, x: np.ndarray, normed: np.ndarray | None = None) -> None:
    """x += layer i's feed-forward of x normed, or of `normed` where it is given."""
    h, p = b.h, f"blk.{i}."
    if p + "pre_ffw_norm_2.weight" in b.w.tensors:
        b.merge(x, _dense_and_experts(b, i, x), b.vector(p + "post_ffw_norm.weight", h.hidden))
        return
    if normed is None and h.style.norms_behind:
        normed = x
    elif normed is None:
        # a layer that neither attends nor recurs is this alone, and its norm is the layer's
        alone = () if h.attends[i] or h.recurs[i] else ("attn_norm",)
        names = [p + n for n in (*alone, "ffn_norm", "post_attention_norm", "attn_output_norm")]
        held = b.w.tensors
        name = next((n for n in names if n + ".weight" in held or n in held), p + "ffn_norm")
        normed = b.floats("normed", h.hidden)
        b.norm_by(name, x, normed)
    post = b.vector(p + "post_ffw_norm.weight", h.hidden)
    plain = post is None and b.adds
    out = x if plain else b.floats("ffn_out", h.hidden)
    routed = p + "ffn_gate_inp.weight" in b.w.tensors
    if h.style.shortcut:
        _dense_with_shortcut(b, i, x, normed, routed)
    elif routed:
        _experts(b, i, out, normed, add=plain)
    else:
        _dense(b, i, "", normed, out, add=plain)
    if not plain:
        b.merge(x, out, post)


def _dense(b: Builder, i: int, suffix: str, normed: np.ndarray, out: np.ndarray, add: bool) -> None:
    """Feed-forward with a gate (a fused `ffn_up` holds it first) or without one."""
    h, p = b.h, f"blk.{i}."
    up = b.w.get(f"{p}ffn_up{suffix}.weight")
    gate = b.w.find(f"{p}ffn_gate{suffix}.weight", up.shape)
    down = b.w.get(f"{p}ffn_down{suffix}.weight")
    inner = down.width
    gated = gate is not None or up.shape == (h.hidden, 2 * inner)
    wide = 2 * inner if gated else inner
    if up.shape != (h.hidden, inner if gate is not None else wide) or down.shape != (inner, h.hidden):
        raise UnsupportedModel(
            f"{b.w.name}: `{up.name}` {up.shape} is no {'gated ' * gated}feed-forward of width {inner}"
        )
    if f"{p}ffn_act.scales" in b.w.tensors:
        raise UnsupportedModel(f"{b.w.name}: scales of activations (AWQ) are not supported by the runner")
    both, acted = b.floats("gate_up", wide), b.floats("acted", inner)
    if gate is None:
        b.project(normed, h.hidden, [(up, both, wide, b.vector(f"{p}ffn_up{suffix}.bias", wide))])
    else:
        b.project(normed, h.hidden, [
            (gate, both, wide, b.vector(f"{p}ffn_gate{suffix}.bias", inner)),
            (up, both[inner:], wide, b.vector(f"{p}ffn_up{suffix}.bias", inner)),
        ])  # fmt: skip
    if h.sparse[i]:
        b.program.add("sparsify", kernel_streams.sparsify, both, inner, wide, h.sparse[i])
    if h.style.activation == "xielu":
        b.program.add("gate", kernel_rows.xielu, both, inner, acted, *_xielu(b, p))
    else:
        up_part = both[inner:] if gated else None
        kind, limit = _activation(h, h.dense_limits[i] if gated else 0.0)
        b.gate(kind, both, up_part, acted, inner, (wide, wide, inner), limit=limit)
    if (norm := b.vector(f"{p}ffn_sub_norm.weight", inner)) is not None:
        b.norm(acted, norm, acted, inner)
    b.project(acted, inner, [(down, out, h.hidden, b.vector(f"{p}ffn_down{suffix}.bias", h.hidden))], add=add)


def _dense_and_experts(b: Builder, i: int, x: np.ndarray) -> np.ndarray:
    """Gemma 4's mixtures: a dense feed-forward beside the experts, each with norms of its own before and behind; the
    router reads x normed, by a scale over the root of the width."""
    hidden, p = b.h.hidden, f"blk.{i}."
    normed, out, chosen = (b.floats(name, hidden) for name in ("normed", "ffn_out", "experts_out"))
    b.norm_by(p + "ffn_norm", x, normed)
    _dense(b, i, "", normed, out, add=False)
    b.norm(out, b.vector(p + "post_ffw_norm_1.weight", hidden), out, hidden)
    b.norm_by(p + "pre_ffw_norm_2", x, normed)
    b.w.get(p + "ffn_gate_inp.scale", (hidden,))
    scale, read = b.vector(p + "ffn_gate_inp.scale", hidden), b.floats("router_in", hidden)
    assert scale is not None
    b.norm(x, (scale / np.sqrt(hidden)).astype(np.float32), read, hidden)
    _experts(b, i, chosen, normed, add=False, read=read)
    b.norm(chosen, b.vector(p + "post_ffw_norm_2.weight", hidden), out, hidden, add=True)
    return out


def shortcut(b: Builder) -> np.ndarray | None:
    """What experts of the layer before gave, where the model adds that a layer later."""
    return b.floats("shortcut", b.h.hidden) if b.h.style.shortcut else None


def _dense_with_shortcut(b: Builder, i: int, x: np.ndarray, normed: np.ndarray, routed: bool) -> None:
    """LongCat's pairs of layers: experts read what the first's feed-forward does, and are added behind the second's."""
    later, hidden = shortcut(b), b.h.hidden
    assert later is not None
    if routed:
        _experts(b, i, later, normed, add=False)
    _dense(b, i, "", normed, x, add=True)
    if not routed:
        b.program.add("add", kernel_ops.add, later, x, hidden, hidden, hidden, 1.0)


def _activation(h: Hyper, bound: float) -> tuple[int, float]:
    """The kernel's name for the model's activation and its limit; `bound`: of this layer's gated SiLU, 0 without."""
    if bound > 0 and h.style.activation == "silu":
        return kernel_ops.SILU_OF_LIMITED if h.style.limits_gates else kernel_ops.SILU_LIMITED, bound
    return ACTIVATIONS[h.style.activation], SWIGLU_OAI_LIMIT


def _xielu(b: Builder, p: str) -> tuple[float, float, float, float]:
    """The layer's factors: of x^2, of the exponential part, of x, and where that part begins. Files say them in their
    metadata; a model from the catalogue has a vector for them, and the values that training begins with."""
    i = int(p.split(".")[1])
    stated = {name: b.h.metadata.get(f"xielu.{name}") for name in ("alpha_p", "alpha_n", "beta", "eps")}
    own = b.vector(p + "xielu", 2)
    values = {"alpha_p": 0.8, "alpha_n": 0.8, "beta": 0.5, "eps": -1e-6}
    for name, given in stated.items():
        if isinstance(given, (list, tuple)) and i < len(given):
            given = given[i]
        if isinstance(given, (int, float)):
            values[name] = float(given)
        elif own is None:
            raise BrokenFile(f"{b.w.name}: metadata key `xielu.{name}` is missing or no number")
    soft = {name: log1p(exp(-abs(values[name]))) + max(values[name], 0.0) for name in ("alpha_p", "alpha_n")}
    return soft["alpha_p"], values["beta"] + soft["alpha_n"], values["beta"], values["eps"]


def _experts(
    b: Builder, i: int, x: np.ndarray, normed: np.ndarray, add: bool, read: np.ndarray | None = None
) -> None:
    """x (+)= the chosen experts' sum, and the shared expert's output. Latent experts work in a width of their own.
    `read`: what the router reads, where it is not what the experts do."""
    h, p, k, n = b.h, f"blk.{i}.", b.h.per_token, b.h.n_experts
    groups, weights = _routed(b, p, normed if read is None else read)
    low, high = b.w.find(p + "ffn_latent_down.weight"), None
    source, hidden = normed, h.hidden
    if low is not None:
        hidden = low.rows
        high = b.w.get(p + "ffn_latent_up.weight", (hidden, h.hidden))
        source = b.floats("latent_in", hidden)
        b.project(normed, h.hidden, [(b.w.get(low.name, (h.hidden, hidden)), source, hidden, None)])
    if h.style.weighs_first:
        source, weights = _weighed(b, normed, weights)
    inner = b.w.get(p + "ffn_down_exps.weight").width
    fused, gated = (f"{p}ffn_{name}_exps.weight" in b.w.tensors for name in ("gate_up", "gate"))
    names = ("gate_up",) if fused else ("gate", "up") if gated else ("up",)
    gated, rows = gated or fused, 2 * inner if fused else inner
    ups = [b.w.get(f"{p}ffn_{name}_exps.weight", (hidden, rows, n)) for name in names]
    down, wide = b.w.get(p + "ffn_down_exps.weight", (inner, hidden, n)), len(names) * rows
    bias = lambda name, width: b.vector(f"{p}ffn_{name}_exps.bias", width * n)  # noqa: E731
    both, acted = b.floats("expert_gate_up", wide * k), b.floats("expert_acted", inner * k)
    b.pack_experts(source, hidden, ups, 1, groups)
    for at, (name, weight) in enumerate(zip(names, ups, strict=True)):
        last = at == len(names) - 1
        b.expert_project(weight, bias(name, rows), source, both[at * inner :], wide, 1, groups, wait=last)
    kind, limit = _activation(h, h.expert_limits[i] if gated else 0.0)
    up_part = both[inner:] if gated else None
    b.gate(kind, both, up_part, acted, inner, (wide, wide, inner), rows=k, limit=limit)
    b.pack_experts(acted, inner, [down], k, groups)
    out = b.floats("expert_out", hidden * k)
    b.expert_project(down, bias("down", hidden), acted, out, hidden, k, groups)
    if h.n_zero:
        b.program.add("identity", kernel_identity.give_back, normed, h.hidden, groups.pairs, groups.first[n:], h.n_zero,
                      k, out)  # fmt: skip
    for weight in (*ups, down):
        b.touched += weight.data.nbytes * k // h.n_chosen
        b.flops += 2 * weight.rows * weight.width * k * n / h.n_chosen
        own = b.w.tensors.get(weight.name.removesuffix("weight") + "bias")
        # `vector` counted every expert's
        b.touched -= own.data.nbytes * (n - k) // n if own is not None else 0
    shared = _shared_expert(b, i, normed) if p + "ffn_up_shexp.weight" in b.w.tensors else None
    if high is None:
        b.program.add("combine", kernel_ops.combine, out, weights, k, hidden, x, int(not add))
    else:
        joined = b.floats("latent_sum", hidden)
        b.program.add("combine", kernel_ops.combine, out, weights, k, hidden, joined, 1)
        b.project(joined, hidden, [(high, x, h.hidden, None)], add=add)
    if shared is not None:
        b.program.add("add", kernel_ops.add, shared, x, h.hidden, h.hidden, h.hidden, 1.0)


def _weighed(b: Builder, normed: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The experts' input by their weight, and weights of one. Raises UnsupportedModel for more than one expert."""
    h = b.h
    if h.per_token != 1:
        raise UnsupportedModel(f"{b.w.name}: {h.per_token} experts with weighted inputs are not supported")
    out, ones = b.floats("weighed", h.hidden), np.ones(b.room.n_batch, np.float32)
    b.program.add("weigh", kernel_rows.weigh, normed, h.hidden, weights, out)
    return out, ones


def _routed(b: Builder, p: str, normed: np.ndarray) -> tuple[Groups, np.ndarray]:
    """(token, slot) pairs by the experts that the router chose, and their weights."""
    h, k, n = b.h, b.h.per_token, b.h.n_experts
    if not 0 < k <= n:
        raise UnsupportedModel(f"{b.w.name}: {k} of {n} experts per token")
    every = h.n_chosen
    scores = b.floats("scores", every)
    router = b.w.get(p + "ffn_gate_inp.weight", (h.hidden, every))
    b.project(normed, h.hidden, [(router, scores, every, b.vector(p + "ffn_gate_inp.bias", every))])
    rows = b.room.n_batch * k
    bias = b.vector(p + "exp_probs_b.bias", every)
    if bias is None:
        bias = b.vector(p + "exp_probs_b", every)  # as Hy3 names it
    pairs, first, chosen = (b.room.integers(s, max(rows, every + 1)) for s in ("pairs", "first", "chosen"))
    weights = b.floats("expert_weights", k)
    b.program.add("route", kernel_router.route, scores, every, k, pairs, first, weights, ROUTERS[h.router],
                  int(h.normalize), float(h.expert_factor), bias, chosen, *h.expert_groups, _table(b, p),
                  b.room.tokens)  # fmt: skip
    if (factors := b.vector(p + "ffn_down_exps.scale", n)) is not None:
        b.program.add("route", kernel_rows.factor_by_expert, weights, k, chosen, factors)
    return Groups(pairs, first, n, k), weights


def _table(b: Builder, p: str) -> np.ndarray | None:
    """Experts by token, where a layer does not choose them (`room.check` looked at them); a step reads a row."""
    table = b.w.tensors.get(p + "ffn_gate_tid2eid.weight")
    if table is None:
        return None
    b.touched += table.row_bytes
    return table.data


def _shared_expert(b: Builder, i: int, normed: np.ndarray) -> np.ndarray:
    """What the shared expert adds, times its own gate where it has one."""
    h, p = b.h, f"blk.{i}."
    gate = b.w.find(p + "ffn_gate_inp_shexp.weight")
    shared, strength = b.floats("shared_out", h.hidden), b.floats("shared_gate", 1)
    if gate is not None:
        if gate.shape not in ((h.hidden,), (h.hidden, 1)):
            b.w.get(gate.name, (h.hidden,))
        flat = Weight(gate.name, gate.format, (h.hidden, 1), gate.data)
        b.project(normed, h.hidden, [(flat, strength, 1, None)])
    _dense(b, i, "_shexp", normed, shared, add=False)
    if gate is not None:
        b.program.add("scale", kernel_ops.scale_by_gate, shared, h.hidden, strength, 1)
    return shared
