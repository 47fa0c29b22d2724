"""Layers that keep a state instead of a cache: Mamba-2, the gated delta rule, and short convolutions.

Graphs follow https://github.com/ggml-org/llama.cpp/tree/master/src/models (mamba-base, delta-net-base, lfm2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from modeldb.errors import UnsupportedModel
from runner import kernel_ops, kernel_recurrent
from runner.hyper import Hyper, Recurrent
from runner.weights import Weight, Weights

if TYPE_CHECKING:
    from runner.builder import Builder

# Operations per number of a state and token: its decay, what is added (product and sum), and the sum that reads it;
# the delta rule also reads it before.
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


def _shapes(h: Hyper, r: Recurrent, joined: bool) -> Mapping[str, tuple[int, ...]]:
    """The matrices of a recurrent layer."""
    if h.style.recurrent == "short_conv":
        return {
            "shortconv.conv.weight": (r.taps, r.channels),
            "shortconv.in_proj.weight": (h.hidden, 3 * h.hidden),
            "shortconv.out_proj.weight": (h.hidden, h.hidden),
        }
    shared = {"ssm_conv1d.weight": (r.taps, r.channels), "ssm_out.weight": (r.inner, h.hidden)}
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
    makers = {"mamba2": _mamba2, "delta": _delta, "short_conv": _short_convolution}
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
    b: Builder, i: int, x: np.ndarray, stride: int, name: str, silu: bool, wait: bool = True
) -> np.ndarray:
    """The convolution of layer i's channels at x [token][stride], with what it keeps of earlier tokens."""
    r, state = _sizes(b.h), b.cache.states[i]
    assert state is not None
    weights = _needed(b, f"blk.{i}.{name}.weight", r.taps * r.channels)
    by_tap = np.ascontiguousarray(weights.reshape(r.channels, r.taps).T)
    out = b.floats("convolved", r.channels)
    bias = b.vector(f"blk.{i}.{name}.bias", r.channels)
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
                  r.n_groups, step, decay, skip, cache.state, out)  # fmt: skip
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


def _short_convolution(b: Builder, i: int, x: np.ndarray, normed: np.ndarray) -> None:
    """LFM2's layer: B and C gate the convolution's input and output."""
    n = b.h.hidden
    joined, product = b.floats("short_in", 3 * n), b.floats("short_product", n)
    b.project(normed, n, [(_matrix(b, i, "shortconv.in_proj.weight"), joined, 3 * n, None)])
    b.gate(kernel_ops.LINEAR, joined, joined[2 * n :], product, n, (3 * n, 3 * n, n))
    convolved = _convolve(b, i, product, n, "shortconv.conv", silu=False)
    b.gate(kernel_ops.LINEAR, joined[n:], convolved, convolved, n, (3 * n, n, n))
    b.join(x, convolved, _matrix(b, i, "shortconv.out_proj.weight"))
