"""The forward pass on tensors: the graphs of `runner.forward`, for any number of tokens.

`forward` reads nothing back from the device for one token, and its shapes follow from `n_seen` alone: a step of one
token can therefore be captured as a CUDA graph. What a layer does follows from the tensors it has.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from modeldb.errors import UnsupportedModel
from runner import torch_matrix as matrix
from runner.torch_cache import KvCache, LayerCache, mask

if TYPE_CHECKING:
    from torch import Tensor

    from runner.hyper import Hyper

ARCHITECTURES = (
    "llama", "qwen2", "qwen3", "qwen2moe", "qwen3moe", "gemma", "gemma2", "gemma3", "phi3", "gpt-oss", "deepseek2",
)  # fmt: skip
OAI_ALPHA, OAI_LIMIT = 1.702, 7.0  # gpt-oss model card and modeling_gpt_oss.py


@dataclass(frozen=True)
class Held:
    """A model on a device. `tensors`: vectors in float32, matrices as `runner.torch_matrix` holds them; `angles`:
    (frequencies, magnitude) of the rotation, by whether the layer has a window."""

    name: str
    hyper: Hyper
    tensors: dict[str, Any] = field(repr=False)
    cache: KvCache = field(repr=False)
    angles: dict[bool, tuple[Tensor, float]] = field(repr=False)
    paths: matrix.Paths

    def product(self, x: Tensor, name: str) -> Tensor:
        """W x + bias, in float32."""
        out = matrix.product(self.tensors[name + ".weight"], x, self.paths)
        bias = self.tensors.get(name + ".bias")
        return out if bias is None else out + bias

    def norm(self, x: Tensor, name: str) -> Tensor:
        import torch

        weight = self.tensors[name + ".weight"]
        # one kernel in newer versions
        if weight.dtype == x.dtype and hasattr(torch.nn.functional, "rms_norm"):
            return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, self.hyper.eps)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.hyper.eps) * weight


@dataclass(frozen=True)
class Step:
    """What all layers of one pass share. `masks` by window (0: none); `turns` (cosine, signed sine) by whether
    windowed."""

    positions: Tensor  # [token]
    n_seen: int
    masks: dict[int, Tensor | None]
    turns: dict[bool, tuple[Tensor, Tensor]]


def check(h: Hyper, name: str) -> None:
    """Raises UnsupportedModel for what the compiled runner executes and this backend does not."""
    if h.architecture not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{name}: the PyTorch backend has no `{h.architecture}` architecture; it runs {', '.join(ARCHITECTURES)}"
        )
    if h.decompressed:
        raise UnsupportedModel(f"{name}: the PyTorch backend has no decompressed cache of latent attention")
    if h.temper:
        raise UnsupportedModel(f"{name}: the PyTorch backend has no queries that grow with position")


def forward(
    m: Held, ids: Tensor, positions: Tensor, n_seen: int, all_logits: bool = False, first: bool = False
) -> Tensor:
    """float32 logits [1][vocab] after the last token, or [token][vocab] where `all_logits`.

    ids, positions: int64 [token] on the device. `n_seen`: slots of the full cache to attend over, at least the last
    position + 1. `first`: nothing is cached before, so that attention may be plainly causal.
    """
    h, t = m.hyper, m.tensors
    step = _step(m, positions, n_seen, first)
    x = matrix.rows_of(t["token_embd.weight"], ids)
    if h.style.scaled_embedding:
        x = x * float(np.float32(h.hidden) ** np.float32(0.5))
    for i in range(h.n_layers):
        p = f"blk.{i}."
        mix = _latent if h.is_latent else _attention
        mixed = m.product(mix(m, step, i, m.norm(x, p + "attn_norm")), p + "attn_output")
        if p + "ffn_norm.weight" in t and p + "post_attention_norm.weight" in t:
            mixed = m.norm(mixed, p + "post_attention_norm")
        x = x + mixed
        normed = m.norm(x, p + ("ffn_norm" if p + "ffn_norm.weight" in t else "post_attention_norm"))
        fed = _experts(m, p, normed) if p + "ffn_gate_inp.weight" in t else _dense(m, p, "", normed)
        x = x + (m.norm(fed, p + "post_ffw_norm") if p + "post_ffw_norm.weight" in t else fed)
    x = m.norm(x if all_logits else x[-1:], "output_norm")
    logits = matrix.product(t.get("output.weight", t["token_embd.weight"]), x, m.paths)
    return (logits / h.logit_cap).tanh() * h.logit_cap if h.logit_cap else logits


def _step(m: Held, positions: Tensor, n_seen: int, first: bool) -> Step:
    masks: dict[int, Tensor | None] = {}
    for layer in m.cache.layers:
        if layer.window not in masks:
            causal = first and len(positions) <= (layer.window or n_seen) and not m.hyper.score_cap
            masks[layer.window] = None if causal else mask(layer, n_seen, positions)
    turns = {}
    for windowed, (frequency, magnitude) in m.angles.items():
        angle = positions[:, None, None].float() * frequency
        turns[windowed] = _both(m, angle.cos() * magnitude, angle.sin() * magnitude)
    return Step(positions, n_seen, masks, turns)


def _both(m: Held, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine for both numbers of each pair, in the order of a head: [token][1][rotary]."""
    import torch

    if m.hyper.style.halves:
        return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    return cos.repeat_interleave(2, -1), torch.stack((-sin, sin), -1).flatten(-2)


def _rotate(m: Held, s: Step, x: Tensor, windowed: bool) -> Tensor:
    """x [token][head][width]: the first `rotary` numbers of each head turn with the position. Three kernels."""
    import torch

    h = m.hyper
    cos, sin = s.turns[windowed]
    part, rest = x[..., : h.rotary], x[..., h.rotary :]
    halves = h.style.halves
    other = part.roll(h.rotary // 2, -1) if halves else part.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    turned = torch.addcmul(part * cos, other, sin)
    return torch.cat((turned, rest), -1) if rest.shape[-1] else turned


def _store(c: LayerCache, s: Step, keys: Tensor, values: Tensor | None) -> tuple[Tensor, Tensor]:
    """Put rows [token][kv head][width] at their positions; the keys and values that this pass attends over."""
    slots = s.positions.remainder(c.n_slots) if c.is_ring else s.positions
    c.keys.index_copy_(1, slots, keys.transpose(0, 1).to(c.keys.dtype))
    if values is not None:
        c.values.index_copy_(1, slots, values.transpose(0, 1).to(c.values.dtype))
    return (c.keys, c.values) if c.is_ring else (c.keys[:, : s.n_seen], c.values[:, : s.n_seen])


def _attention(m: Held, s: Step, i: int, normed: Tensor) -> Tensor:
    import torch

    h, p, n, c = m.hyper, f"blk.{i}.", len(normed), m.cache.layers[i]
    n_kv, windowed = h.n_kv_heads[i], bool(h.windows[i])
    if p + "attn_qkv.weight" in m.tensors:
        widths = [h.n_heads * h.head_dim, n_kv * h.head_dim, n_kv * h.value_dim]
        q, k, v = m.product(normed, p + "attn_qkv").split(widths, -1)
    else:
        q, k, v = (m.product(normed, f"{p}attn_{name}") for name in "qkv")
    q, k, v = q.reshape(n, h.n_heads, -1), k.reshape(n, n_kv, -1), v.reshape(n, n_kv, -1)
    if p + "attn_q_norm.weight" in m.tensors:
        q, k = m.norm(q, p + "attn_q_norm"), m.norm(k, p + "attn_k_norm")
    q, k = _rotate(m, s, torch.cat((q, k), 1), windowed).split((h.n_heads, n_kv), 1)
    keys, values = _store(c, s, k, v)
    if s.masks[c.window] is None:  # attend over this pass alone, in order
        keys, values = (x.transpose(0, 1).to(c.keys.dtype) for x in (k, v))
    return _attend(m, s, i, q, keys, values)


def _attend(m: Held, s: Step, i: int, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """q [token][head][width] over keys and values [kv head][slot][width] -> [token][head * value width].

    Heads that share keys are stacked as more queries of one head, so keys are read once and never repeated.
    """
    import torch

    h, n, n_kv = m.hyper, len(q), len(keys)
    seen, sinks = s.masks[m.cache.layers[i].window], m.tensors.get(f"blk.{i}.attn_sinks.weight")
    group = h.n_heads // n_kv
    q = q.transpose(0, 1).to(keys.dtype)
    attend = torch.nn.functional.scaled_dot_product_attention
    if sinks is None and not h.score_cap:
        if seen is None:
            keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
            out = attend(q[None], keys[None], values[None], is_causal=True, scale=h.score_factor)
        else:
            wide = seen.expand(group, n, -1).reshape(group * n, -1)
            stacked = q.reshape(1, n_kv, group * n, -1)
            out = attend(stacked, keys[None], values[None], attn_mask=wide, scale=h.score_factor)
        return out.reshape(h.n_heads, n, -1).transpose(0, 1).reshape(n, -1)
    if seen is None:
        seen = torch.ones((n, n), dtype=torch.bool, device=q.device).tril()
    stacked = q.reshape(n_kv, group * n, -1)
    scores = (stacked @ keys.transpose(1, 2)).float().view(h.n_heads, n, -1) * h.score_factor
    if h.score_cap:
        scores = torch.tanh(scores / h.score_cap) * h.score_cap
    scores = scores.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        more = sinks[:, None, None].expand(-1, n, 1)
        scores = torch.cat((scores, more), -1)
    chances = torch.softmax(scores, -1)[..., : keys.shape[1]]
    out = chances.to(values.dtype).reshape(n_kv, group * n, -1) @ values
    return out.reshape(h.n_heads, n, -1).transpose(0, 1).reshape(n, -1)


def _latent(m: Held, s: Step, i: int, normed: Tensor) -> Tensor:
    """Multi-head latent attention in its absorbed form (arXiv 2405.04434, section 2.1)."""
    import torch

    h, p, n, c = m.hyper, f"blk.{i}.", len(normed), m.cache.layers[i]
    if p + "attn_q_a.weight" in m.tensors:
        low = m.norm(m.product(normed, p + "attn_q_a"), p + "attn_q_a_norm")
        q = m.product(low, p + "attn_q_b")
    else:
        q = m.product(normed, p + "attn_q")
    q = q.view(n, h.n_heads, h.nope_dim + h.rotary)
    kv = m.product(normed, p + "attn_kv_a_mqa")
    latent = m.norm(kv[:, : h.kv_rank], p + "attn_kv_a_norm")
    turned = _rotate(m, s, kv[:, None, h.kv_rank :], False)
    keys, _ = _store(c, s, torch.cat((latent[:, None], turned), -1), None)
    k_b, v_b = m.tensors[p + "attn_k_b.weight"], m.tensors[p + "attn_v_b.weight"]
    nope = torch.einsum("thd,hrd->thr", q[..., : h.nope_dim].to(k_b.dtype), k_b).float()
    absorbed = torch.cat((nope, _rotate(m, s, q[..., h.nope_dim :], False)), -1)
    if s.masks[c.window] is None:
        keys = keys[:, :n]
    out = _attend(m, s, i, absorbed, keys, keys[..., : h.kv_rank]).view(n, h.n_heads, h.kv_rank)
    return torch.einsum("thr,hvr->thv", out.to(v_b.dtype), v_b).reshape(n, -1)


# -- feed-forward ----------------------------------------------------------------------------------------------


def _gate(m: Held, gate: Tensor, up: Tensor) -> Tensor:
    import torch

    functional, kind = torch.nn.functional, m.hyper.style.activation
    if kind == "silu":
        return functional.silu(gate) * up
    if kind == "gelu_tanh":
        return functional.gelu(gate, approximate="tanh") * up
    if kind == "swiglu_oai":
        gate, up = gate.clamp(max=OAI_LIMIT), up.clamp(-OAI_LIMIT, OAI_LIMIT)
        return gate * torch.sigmoid(OAI_ALPHA * gate) * (up + 1)
    raise UnsupportedModel(f"{m.name}: the PyTorch backend has no `{kind}` activation")


def _dense(m: Held, p: str, suffix: str, normed: Tensor) -> Tensor:
    """Gated feed-forward; a fused `ffn_up` holds the gate first."""
    up = m.product(normed, f"{p}ffn_up{suffix}")
    if f"{p}ffn_gate{suffix}.weight" in m.tensors:
        gate = m.product(normed, f"{p}ffn_gate{suffix}")
    else:
        gate, up = up.chunk(2, -1)
    return m.product(_gate(m, gate, up), f"{p}ffn_down{suffix}")


def _experts(m: Held, p: str, normed: Tensor) -> Tensor:
    import torch

    chosen, shares = _route(m, p, normed)
    n, slots = chosen.shape
    pairs = chosen.reshape(-1)
    if n * slots <= matrix.FEW_PAIRS:
        gate, up = (_chosen(m, f"{p}ffn_{name}_exps", normed, pairs, slots) for name in ("gate", "up"))
        fed = _chosen(m, p + "ffn_down_exps", _gate(m, gate, up), pairs, 1)
    else:
        order = pairs.argsort(stable=True)
        by_expert = pairs[order]
        experts = torch.arange(m.hyper.n_experts, device=pairs.device)
        ends = torch.searchsorted(by_expert, experts, right=True).int()
        x = normed[order // slots]
        gate, up = (_grouped(m, f"{p}ffn_{name}_exps", x, by_expert, ends) for name in ("gate", "up"))
        sorted_out = _grouped(m, p + "ffn_down_exps", _gate(m, gate, up), by_expert, ends)
        fed = torch.empty_like(sorted_out).index_copy_(0, order, sorted_out)
    out = (fed.view(n, slots, -1) * shares[..., None]).sum(1)
    if p + "ffn_up_shexp.weight" in m.tensors:
        shared = _dense(m, p, "_shexp", normed)
        strength = m.tensors.get(p + "ffn_gate_inp_shexp.weight")
        if strength is not None:
            shared = shared * torch.sigmoid(normed @ strength.reshape(-1, 1).float())
        out = out + shared
    return out


def _chosen(m: Held, name: str, x: Tensor, pairs: Tensor, slots: int) -> Tensor:
    out = matrix.chosen_product(m.tensors[name + ".weight"], x, pairs, slots, m.paths)
    bias = m.tensors.get(name + ".bias")
    return out if bias is None else out + bias[pairs].float()


def _grouped(m: Held, name: str, x: Tensor, by_expert: Tensor, ends: Tensor) -> Tensor:
    out = matrix.grouped_product(m.tensors[name + ".weight"], x, ends, m.paths)
    bias = m.tensors.get(name + ".bias")
    return out if bias is None else out + bias[by_expert].float()


def _route(m: Held, p: str, normed: Tensor) -> tuple[Tensor, Tensor]:
    """(experts, weights), each [token][slot]."""
    import torch

    h = m.hyper
    scores = normed @ m.tensors[p + "ffn_gate_inp.weight"].float().T
    bias = m.tensors.get(p + "ffn_gate_inp.bias")
    scores = scores if bias is None else scores + bias
    if h.router == "softmax":
        scores = torch.softmax(scores, -1)
    elif h.router == "sigmoid":
        scores = torch.sigmoid(scores)
    selection = m.tensors.get(p + "exp_probs_b.bias")
    chosen = (scores if selection is None else scores + selection).topk(h.per_token, -1).indices
    shares = scores.gather(-1, chosen)
    if h.router == "softmax_of_chosen":
        shares = torch.softmax(shares, -1)
    elif h.normalize:
        shares = shares / shares.sum(-1, keepdim=True)
    return chosen, shares * h.expert_factor
