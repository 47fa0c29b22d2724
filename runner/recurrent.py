"""Layers that keep a state instead of a cache: Mamba, Mamba-2, delta rules, lightning attention, and short
convolutions.

Graphs follow https://github.com/ggml-org/llama.cpp/tree/master/src/models (mamba-base, delta-net-base, kimi-linear,
minimax-01, lfm2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from modeldb.errors import UnsupportedModel
from runner import kernel_ops, kernel_recurrent, kernel_selective, rotation
from runner.hyper import Hyper
from runner.indexer import Parts
from runner.states import Recurrent
from runner.weights import Weight, Weights

if TYPE_CHECKING:
    from runner.builder import Builder

# Operations per number of a state and token: its decay, what is added (product and sum), and the sum that reads it;
# delta rules also read it before. Powers of e, where each number has its decay, are not counted.
SCAN_FLOPS, DELTA_FLOPS = 5, 7


def feed_forward_names(i: int) -> tuple[str, str]:
    """Tensors of which a layer with a feed-forward has one."""
    return f"blk.{i}.ffn_up.weight", f"blk.{i}.ffn_up_exps.weight"


def check(h: Hyper, w: Weights, i: int) -> None:
    """Hold a recurrent layer's tensors against the metadata. Raises BrokenFile or UnsupportedModel."""
    r, p = _sizes(h), f"blk.{i}."
    for name, shape in _shapes(h, r, p + "ssm_ba.weight" in w.tensors).items():
        if name == "attn_qkv.weight" and p + "ssm_in.weight" in w.tensors:
            raise UnsupportedModel(f"{w.name}: joined queries and gates; convert it with a newer llama.cpp")
        w.get(p + name, shape)


def _sizes(h: Hyper) -> Recurrent:
    assert h.recurrent is not None
    return h.recurrent


def _kimi_shapes(h: Hyper, r: Recurrent) -> Mapping[str, tuple[int, ...]]:
    """Gates come of narrow projections, or each of one full matrix (Ling 3.0)."""
    matrices: dict[str, tuple[int, ...]] = dict.fromkeys(
        ("attn_q.weight", "attn_k.weight", "attn_v.weight"), (h.hidden, r.inner)
    )
    ends = {"ssm_beta.weight": (h.hidden, r.n_heads), "attn_output.weight": (r.inner, h.hidden)}
    low, wide = ("ssm_f_a.weight", "ssm_g_a.weight"), ("ssm_f_b.weight", "ssm_g_b.weight")
    if h.style.full_gates:
        return matrices | dict.fromkeys(low, (h.hidden, r.inner)) | ends
    return matrices | dict.fromkeys(low, (h.hidden, r.state)) | dict.fromkeys(wide, (r.state, r.inner)) | ends


def _shapes(h: Hyper, r: Recurrent, joined: bool) -> Mapping[str, tuple[int, ...]]:
    """The matrices of a recurrent layer."""
    if h.style.recurrent == "kda":
        return _kimi_shapes(h, r)
    if h.style.recurrent == "lightning":
        return {
            "attn_qkv.weight": (h.hidden, 3 * r.inner),
            "attn_gate.weight": (h.hidden, r.inner),
            "attn_output.weight": (r.inner, h.hidden),
        }
    if h.style.recurrent == "short_conv":
        return {
            "shortconv.conv.weight": (r.taps, r.channels),
            "shortconv.in_proj.weight": (h.hidden, 3 * h.hidden),
            "shortconv.out_proj.weight": (h.hidden, h.hidden),
        }
    shared = {"ssm_conv1d.weight": (r.taps, r.channels), "ssm_out.weight": (r.inner, h.hidden)}
    if h.style.recurrent == "mamba":
        rank = r.step_rank
        return shared | {
            "ssm_in.weight": (h.hidden, 2 * r.inner),
            "ssm_x.weight": (r.inner, rank + 2 * r.state),
            "ssm_dt.weight": (rank, r.inner),
        }
    if h.style.recurrent == "mamba2":
        return shared | {"ssm_in.weight": (h.hidden, r.inner + r.channels + r.n_heads)}
    rates = ("ssm_ba.weight",) if joined else ("ssm_beta.weight", "ssm_alpha.weight")
    width = 2 * r.n_heads if joined else r.n_heads
    return (
        {"attn_qkv.weight": (h.hidden, r.channels), "attn_gate.weight": (h.hidden, r.inner)}
        | dict.fromkeys(rates, (h.hidden, width))
        | shared
    )


def mix(b: Builder, i: int, x: np.ndarray, normed: np.ndarray) -> None:
    """Append layer i's recurrent mixer: x += what it makes of `normed`."""
    makers = {
        "mamba": _mamba,
        "mamba2": _mamba2,
        "delta": _delta,
        "kda": _kimi,
        "lightning": _lightning,
        "short_conv": _short_convolution,
    }
    makers[b.h.style.recurrent](b, i, x, normed)


def _matrix(b: Builder, i: int, name: str) -> Weight:
    r = _sizes(b.h)
    return b.w.get(f"blk.{i}.{name}", _shapes(b.h, r, name == "ssm_ba.weight")[name])


def _needed(b: Builder, name: str, width: int) -> np.ndarray:
    """A vector that the layer must have."""
    found = b.vector(b.w.get(name).name, width)
    assert found is not None
    return found


def _convolve(
    b: Builder, i: int, x: np.ndarray, stride: int, name: str | tuple[str, ...], silu: bool, wait: bool = True
) -> np.ndarray:
    """The convolution of layer i's channels at x [token][stride], with what it keeps of earlier tokens. Several names:
    their channels follow each other."""
    r, state = _sizes(b.h), b.cache.states[i]
    assert state is not None
    names = (name,) if isinstance(name, str) else name
    each = r.taps * r.channels // len(names)
    weights = np.concatenate([_needed(b, f"blk.{i}.{n}.weight", each) for n in names])
    by_tap = np.ascontiguousarray(weights.reshape(r.channels, r.taps).T)
    out = b.floats("convolved", r.channels)
    bias = b.vector(f"blk.{i}.{names[0]}.bias", r.channels)
    b.program.add("convolve", kernel_recurrent.convolve, x, stride, r.channels, r.taps, by_tap, bias, state.tail, out,
                  r.channels, int(silu), wait=wait)  # fmt: skip
    b.flops += 2 * r.taps * r.channels
    return out


def _steps(b: Builder, i: int, x: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Step sizes and decays [token][head] from x [token][stride]."""
    n, p = _sizes(b.h).n_heads, f"blk.{i}."
    step, decay = b.floats("step", n), b.floats("decay", n)
    b.program.add("steps", kernel_recurrent.steps, x, stride, n, _needed(b, p + "ssm_dt.bias", n),
                  _needed(b, p + "ssm_a", n), step, decay)  # fmt: skip
    return step, decay


def _mamba(b: Builder, i: int, x: np.ndarray, normed: np.ndarray) -> None:
    """Mamba (arXiv 2312.00752): one projection to channels and a gate; of the convolved channels another to factors of
    step sizes, B and C. Jamba norms these three with weights, Falcon-Mamba without."""
    h, r, p, cache = b.h, _sizes(b.h), f"blk.{i}.", b.cache.states[i]
    assert cache is not None
    inner, rank, n = r.inner, r.step_rank, r.state
    joined, small = b.floats("ssm_in", 2 * inner), b.floats("ssm_x", rank + 2 * n)
    b.project(normed, h.hidden, [(_matrix(b, i, "ssm_in.weight"), joined, 2 * inner, None)])
    convolved = _convolve(b, i, joined, 2 * inner, "ssm_conv1d", silu=True)
    b.project(convolved, inner, [(_matrix(b, i, "ssm_x.weight"), small, rank + 2 * n, None)])
    for name, at, width in (("dt", 0, rank), ("b", rank, n), ("c", rank + n, n)):
        weight = b.vector(f"{p}ssm_{name}_norm.weight", width)
        if weight is not None or r.normed:
            b.norm(small[at:], weight, small[at:], width, stride=rank + 2 * n)
    step, out = b.floats("step", inner), b.floats("ssm_out", inner)
    bias = _needed(b, p + "ssm_dt.bias", inner)
    b.project(small, rank + 2 * n, [(_matrix(b, i, "ssm_dt.weight"), step, inner, bias)])
    b.program.add("soften", kernel_selective.soften, step, inner, None)
    rates, skip = _needed(b, p + "ssm_a", inner * n), _needed(b, p + "ssm_d", inner)
    b.program.add("scan", kernel_selective.selective, convolved, step, small[rank:], small[rank + n :], rank + 2 * n,
                  inner, n, rates, skip, cache.state, out)  # fmt: skip
    b.flops += SCAN_FLOPS * r.state_numbers
    b.gate(kernel_ops.SILU, joined[inner:], out, out, inner, (2 * inner, inner, inner))
    b.join(x, out, _matrix(b, i, "ssm_out.weight"))


def _mamba2(b: Builder, i: int, x: np.ndarray, normed: np.ndarray) -> None:
    """Mamba-2 (arXiv 2405.21060): one projection to a gate, the convolved channels (x, B, C) and step sizes."""
    h, r, p, cache = b.h, _sizes(b.h), f"blk.{i}.", b.cache.states[i]
    assert cache is not None
    total, inner = r.inner + r.channels + r.n_heads, r.inner
    joined = b.floats("ssm_in", total)
    b.project(normed, h.hidden, [(_matrix(b, i, "ssm_in.weight"), joined, total, None)])
    convolved = _convolve(b, i, joined[inner:], total, "ssm_conv1d", silu=True, wait=False)
    step, decay = _steps(b, i, joined[inner + r.channels :], total)
    out = b.floats("ssm_out", inner)
    skip = _needed(b, p + "ssm_d", r.n_heads)
    b_part, c_part = convolved[inner:], convolved[inner + r.n_groups * r.state :]
    b.program.add("scan", kernel_recurrent.scan, convolved, b_part, c_part, r.channels, r.n_heads, r.head_rows, r.state,
                  r.n_groups, step, decay, skip, cache.state, out, r.head_rows, r.state, r.n_heads)  # fmt: skip
    b.flops += SCAN_FLOPS * r.state_numbers
    b.gate(kernel_ops.SILU, joined, out, out, inner, (total, inner, inner))
    norm = b.vector(p + "ssm_norm.weight", inner)
    if norm is not None:
        width = inner // r.n_groups
        b.norm(out, norm, out, width, r.n_groups, inner, head_stride=width)
    b.join(x, out, _matrix(b, i, "ssm_out.weight"))


def _delta(b: Builder, i: int, x: np.ndarray, normed: np.ndarray) -> None:
    """Gated DeltaNet (arXiv 2412.06464): convolved queries, keys and values, a gate, and two rates per value head."""
    h, r, p, cache = b.h, _sizes(b.h), f"blk.{i}.", b.cache.states[i]
    assert cache is not None
    n, keys = r.n_heads, r.n_groups * r.state
    joined = p + "ssm_ba.weight" in b.w.tensors
    qkv, gate = b.floats("delta_qkv", r.channels), b.floats("delta_gate", r.inner)
    beta, alpha, both = b.floats("beta", n), b.floats("alpha", n), b.floats("beta_alpha", 2 * n)
    parts = [(qkv, "attn_qkv.weight", r.channels), (gate, "attn_gate.weight", r.inner)]
    parts += (
        [(both, "ssm_ba.weight", 2 * n)]
        if joined
        else [(beta, "ssm_beta.weight", n), (alpha, "ssm_alpha.weight", n)]
    )
    b.project(normed, h.hidden, [(_matrix(b, i, name), out, width, None) for out, name, width in parts])
    if joined:  # each key head's betas, then its alphas
        per_key = n // r.n_groups
        for source, out in ((both, beta), (both[per_key:], alpha)):
            b.program.add(
                "slice", kernel_ops.slice_heads, source, 2 * per_key, out, per_key, per_key, r.n_groups
            )
    convolved = _convolve(b, i, qkv, r.channels, "ssm_conv1d", silu=True, wait=False)
    b.gate(kernel_ops.LOGISTIC, beta, None, beta, n, (n, n, n))
    _, decay = _steps(b, i, alpha, n)
    b.program.add(
        "unit", kernel_recurrent.unit_length, convolved, r.channels, 2 * r.n_groups, r.state, float(h.eps)
    )
    out = b.floats("ssm_out", r.inner)
    b.program.add("delta", kernel_recurrent.delta, convolved[2 * keys :], convolved[keys:], convolved, r.channels, n,
                  r.head_rows, r.state, r.n_groups, beta, decay, int(h.style.shared_keys), cache.state,
                  out)  # fmt: skip
    b.flops += DELTA_FLOPS * r.state_numbers
    b.norm(out, _needed(b, p + "ssm_norm.weight", r.head_rows), out, r.head_rows, n, r.inner)
    b.gate(kernel_ops.SILU, gate, out, out, r.inner, (r.inner, r.inner, r.inner))
    b.join(x, out, _matrix(b, i, "ssm_out.weight"))


def _kimi(b: Builder, i: int, x: np.ndarray, normed: np.ndarray) -> None:
    """Kimi delta attention (arXiv 2510.26692): the delta rule with a decay for each number of a key, and a gate of the
    output likewise."""
    h, r, p, cache = b.h, _sizes(b.h), f"blk.{i}.", b.cache.states[i]
    assert cache is not None
    n, dim, inner = r.n_heads, r.state, r.inner
    qkv, beta, narrow = b.floats("delta_qkv", 3 * inner), b.floats("beta", n), b.floats("kda_narrow", 2 * dim)
    decay, gate, out = b.floats("decay", inner), b.floats("delta_gate", inner), b.floats("ssm_out", inner)
    bias = _needed(b, p + "ssm_dt.bias", inner)
    w = lambda name: _matrix(b, i, name + ".weight")  # noqa: E731
    parts: Parts = [(w(f"attn_{x}"), qkv[at * inner :], 3 * inner, None) for at, x in enumerate("qkv")]
    parts.append((w("ssm_beta"), beta, n, None))
    if h.style.full_gates:
        parts += [(w("ssm_f_a"), decay, inner, bias), (w("ssm_g_a"), gate, inner, None)]
    else:
        parts += [(w("ssm_f_a"), narrow, 2 * dim, None), (w("ssm_g_a"), narrow[dim:], 2 * dim, None)]
    b.project(normed, h.hidden, parts)
    names = ("ssm_conv1d_q", "ssm_conv1d_k", "ssm_conv1d_v")
    convolved = _convolve(b, i, qkv, 3 * inner, names, silu=True, wait=False)
    b.gate(kernel_ops.LOGISTIC, beta, None, beta, n, (n, n, n))
    if not h.style.full_gates:
        for name, source, wide, added in (("f", narrow, decay, bias), ("g", narrow[dim:], gate, None)):
            b.project(source, 2 * dim, [(_matrix(b, i, f"ssm_{name}_b.weight"), wide, inner, added)])
    _decays(b, p, decay)
    b.program.add(
        "unit",
        kernel_recurrent.unit_length,
        convolved,
        3 * inner,
        2 * n,
        dim,
        float(h.style.unit_eps or h.eps),
    )
    b.program.add("delta", kernel_selective.kimi, convolved[2 * inner :], convolved[inner:], convolved, 3 * inner, n,
                  dim, dim, beta, decay, cache.state, out)  # fmt: skip
    b.flops += DELTA_FLOPS * r.state_numbers
    b.norm(out, _needed(b, p + "ssm_norm.weight", dim), out, dim, n, inner)
    b.gate(kernel_ops.LOGISTIC, gate, out, out, inner, (inner, inner, inner))
    b.join(x, out, _matrix(b, i, "attn_output.weight"))


def _decays(b: Builder, p: str, x: np.ndarray) -> None:
    """Decays [token][head * number] in place of what was projected: e^(A * softplus(x)), or, where the model bounds
    them, e^(bound * sigmoid(|A| * x)); of A files hold either sign."""
    r, bound = _sizes(b.h), b.h.decay_bound
    rates = np.repeat(_needed(b, p + "ssm_a", r.n_heads), r.state)
    if bound:
        b.program.add("bounded", kernel_selective.bounded, x, r.inner, np.abs(rates), bound)
    else:
        b.program.add("soften", kernel_selective.soften, x, r.inner, rates)


def _lightning(b: Builder, i: int, x: np.ndarray, normed: np.ndarray) -> None:
    """Lightning attention (MiniMax-01, arXiv 2501.08313): linear attention of queries, keys and values through SiLU,
    head by head, whose states decay at rates that are fixed; a norm over all heads, and a gate."""
    h, r, cache = b.h, _sizes(b.h), b.cache.states[i]
    assert cache is not None
    n, dim, inner = r.n_heads, r.state, r.inner
    qkv, gate, out = (
        b.floats("lightning_qkv", 3 * inner),
        b.floats("lightning_gate", inner),
        b.floats("ssm_out", inner),
    )
    parts = [(qkv, "attn_qkv.weight", 3 * inner), (gate, "attn_gate.weight", inner)]
    b.project(normed, h.hidden, [(_matrix(b, i, name), to, width, None) for to, name, width in parts])
    b.gate(kernel_ops.SILU, qkv, None, qkv, 3 * inner, (3 * inner, 3 * inner, 3 * inner))
    step, skip = np.ones(n, np.float32), np.zeros(n, np.float32)
    b.program.add("scan", kernel_recurrent.scan, qkv[2 * dim :], qkv[dim:], qkv, 3 * inner, n, dim, dim, n, step,
                  lightning_decays(n, i, h.n_layers), skip, cache.state, out, 3 * dim, 3 * dim, 0)  # fmt: skip
    b.flops += SCAN_FLOPS * r.state_numbers
    b.norm(out, _needed(b, f"blk.{i}.attn_norm_2.weight", inner), out, inner)
    b.gate(kernel_ops.LOGISTIC, gate, out, out, inner, (inner, inner, inner))
    b.join(x, out, _matrix(b, i, "attn_output.weight"))


def lightning_decays(n_heads: int, layer: int, n_layers: int) -> np.ndarray:
    """What a token leaves of each head's state: e^-slope by ALiBi's slopes, which shrink with depth
    (src/models/minimax-01.cpp of llama.cpp 0c1e57098)."""
    depth = 1.0 - layer / max(1, n_layers - 1) + 1e-5
    return np.exp(-rotation.slopes(n_heads, 8.0).astype(np.float64) * depth).astype(np.float32)


def _short_convolution(b: Builder, i: int, x: np.ndarray, normed: np.ndarray) -> None:
    """LFM2's layer: B and C gate the convolution's input and output."""
    n = b.h.hidden
    joined, product = b.floats("short_in", 3 * n), b.floats("short_product", n)
    b.project(normed, n, [(_matrix(b, i, "shortconv.in_proj.weight"), joined, 3 * n, None)])
    b.gate(kernel_ops.LINEAR, joined, joined[2 * n :], product, n, (3 * n, 3 * n, n))
    convolved = _convolve(b, i, product, n, "shortconv.conv", silu=False)
    b.gate(kernel_ops.LINEAR, joined[n:], convolved, convolved, n, (3 * n, n, n))
    b.join(x, convolved, _matrix(b, i, "shortconv.out_proj.weight"))
