"""The same forward pass on PyTorch: CUDA, ROCm, MPS or CPU tensors, in float16, bfloat16 or float32.

Quantized weights are expanded to that type when they are loaded (there are no fused kernels here: `note` says so), so
memory and speed are those of 16-bit weights. The interface is that of `runner.engine.Engine`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from modeldb.errors import UnsupportedModel
from runner import hyper as hypers
from runner.dequantize import dequantize
from runner.engine import Meter
from runner.errors import ContextFull, RunnerError
from runner.weights import Weight, Weights

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = ("float16", "bfloat16", "float32")
PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
OAI_ALPHA, OAI_LIMIT = 1.702, 7.0  # gpt-oss model card and modeling_gpt_oss.py


def default_device() -> str:
    """`cuda` (ROCm answers to it too), `mps` or `cpu`."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


class TorchEngine:
    """One sequence of a model on a PyTorch device. `prefill` and `decode` return float32 logits as NumPy arrays."""

    def __init__(self, weights: Weights, n_context: int = 0, n_batch: int = 512, device: str = "",
                 dtype: str = "") -> None:  # fmt: skip
        import torch

        if dtype and dtype not in DTYPES:
            raise RunnerError(f"no type is called `{dtype}` here; use {', '.join(DTYPES)}")
        self.torch, self.device = torch, torch.device(device or default_device())
        stored = {PLAIN.get(w.format, "") for w in weights.tensors.values() if len(w.shape) > 1} - {"float32"}
        natural = next(iter(stored)) if len(stored) == 1 and "" not in stored else "float16"
        self.dtype = getattr(torch, dtype or ("float32" if self.device.type == "cpu" else natural))
        self.note = self._note(weights)
        self.weights, self.hyper = weights, hypers.read(weights.metadata, weights.name)
        h = self.hyper
        self.n_context = n_context or min(h.max_context or 4096, 4096)
        self.n_batch, self.n_tokens = max(1, min(n_batch, self.n_context)), 0
        self.vocab_size = weights.get("token_embd.weight").rows
        started = time.perf_counter()
        self.tensors = {name: self._load(w) for name, w in weights.tensors.items()}
        self.caches = [self._cache(n) for n in h.n_kv_heads[: h.n_layers]]
        self.angles = {w: self._angles(w) for w in {bool(v) for v in h.windows}}
        self.meter = Meter(
            load_s=time.perf_counter() - started,
            weight_bytes=sum(t.nbytes for t in self.tensors.values()),
            n_params=weights.n_params,
            cache_bytes=sum(k.nbytes + (0 if v is k else v.nbytes) for k, v in self.caches),
        )

    def _note(self, weights: Weights) -> str:
        packed = sorted({w.format for w in weights.tensors.values()} - set(PLAIN))
        if not packed:
            return ""
        return f"{', '.join(packed)} expanded to {str(self.dtype).removeprefix('torch.')} when loaded"

    def _load(self, weight: Weight) -> Tensor:
        """Rows first; vectors in float32, matrices in the engine's type. The transfer is the one copy."""
        values = dequantize(weight.format, weight.data).reshape(weight.shape[::-1])
        held = self.torch.from_numpy(np.ascontiguousarray(values))
        return held.to(self.device, self.torch.float32 if len(weight.shape) == 1 else self.dtype)

    def _cache(self, n_kv: int) -> tuple[Tensor, Tensor]:
        h = self.hyper
        made = lambda width: self.torch.zeros(  # noqa: E731
            (1 if h.is_latent else n_kv, self.n_context, width), dtype=self.dtype, device=self.device
        )
        keys = made(h.head_dim)
        return keys, keys if h.is_latent else made(h.value_dim)

    def _angles(self, windowed: bool) -> tuple[Tensor, float]:
        names = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
        tables = {
            n: dequantize(w.format, w.data) for n in names if (w := self.weights.tensors.get(n)) is not None
        }
        frequency, magnitude = hypers.rope_frequencies(self.hyper, windowed, tables, self.n_context)
        return self.torch.from_numpy(frequency).to(self.device), magnitude

    # -- the interface ---------------------------------------------------------------------------------------

    def prefill(self, tokens: list[int] | np.ndarray, all_logits: bool = False) -> np.ndarray:
        """Append tokens; logits after the last of them, or [token][vocab] of each where `all_logits`."""
        ids = np.asarray(tokens, np.int64).reshape(-1)
        self._check(ids)
        started, rows = time.perf_counter(), []
        for first in range(0, len(ids), self.n_batch):
            rows.append(self._step(ids[first : first + self.n_batch], all_logits))
        self.meter.prefill_s.append(time.perf_counter() - started)
        self.meter.prefill_tokens.append(len(ids))
        return np.concatenate(rows) if all_logits else rows[-1][-1]

    def decode(self, token: int) -> np.ndarray:
        """Append one token; logits after it."""
        ids = np.array([token])
        self._check(ids)
        started = time.perf_counter()
        logits = self._step(ids, False)[-1]
        self.meter.decode_s.append(time.perf_counter() - started)
        return logits

    def rewind(self, n_tokens: int) -> None:
        """Forget all but the first `n_tokens` tokens."""
        if not 0 <= n_tokens <= self.n_tokens:
            raise ValueError(f"cannot rewind from {self.n_tokens} tokens to {n_tokens}")
        self.n_tokens = n_tokens

    def close(self) -> None:
        self.tensors, self.caches = {}, []

    def _check(self, ids: np.ndarray) -> None:
        if len(ids) == 0:
            raise ValueError("no tokens")
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise ValueError(f"a token is outside the vocabulary of {self.vocab_size}")
        if self.n_tokens + len(ids) > self.n_context:
            raise ContextFull(self.n_tokens + len(ids), self.n_context)

    # -- the forward pass ------------------------------------------------------------------------------------

    def _step(self, ids: np.ndarray, all_logits: bool) -> np.ndarray:
        with self.torch.inference_mode():
            logits = self._forward(self.torch.from_numpy(ids).to(self.device), all_logits)
            out = logits.float().cpu().numpy()
        self.n_tokens += len(ids)
        return out

    def _forward(self, ids: Tensor, all_logits: bool) -> Tensor:
        h, t = self.hyper, self.tensors
        x = t["token_embd.weight"][ids].float()
        if h.style.scaled_embedding:
            x = x * float(np.float32(h.hidden) ** np.float32(0.5))
        positions = self.torch.arange(self.n_tokens, self.n_tokens + len(ids), device=self.device)
        for i in range(h.n_layers):
            p = f"blk.{i}."
            mix = self._latent if h.is_latent else self._attention
            mixed = self._product(mix(i, self._norm(x, p + "attn_norm"), positions), p + "attn_output")
            if p + "ffn_norm.weight" in t and p + "post_attention_norm.weight" in t:
                mixed = self._norm(mixed, p + "post_attention_norm")
            x = x + mixed
            before = p + ("ffn_norm" if p + "ffn_norm.weight" in t else "post_attention_norm")
            normed = self._norm(x, before)
            fed = self._experts(p, normed) if p + "ffn_gate_inp.weight" in t else self._dense(p, "", normed)
            x = x + (self._norm(fed, p + "post_ffw_norm") if p + "post_ffw_norm.weight" in t else fed)
        x = self._norm(x if all_logits else x[-1:], "output_norm")
        head = t.get("output.weight", t["token_embd.weight"])
        logits = (x.to(self.dtype) @ head.T).float()
        return self.torch.tanh(logits / h.logit_cap) * h.logit_cap if h.logit_cap else logits

    def _norm(self, x: Tensor, name: str) -> Tensor:
        scaled = x * self.torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.hyper.eps)
        return scaled * self.tensors[name + ".weight"]

    def _product(self, x: Tensor, name: str) -> Tensor:
        """W x + bias, in float32."""
        out = (x.to(self.dtype) @ self.tensors[name + ".weight"].T).float()
        bias = self.tensors.get(name + ".bias")
        return out if bias is None else out + bias

    def _rotate(self, x: Tensor, positions: Tensor, windowed: bool) -> Tensor:
        """x [token][head][width]: the first `rotary` numbers of each head turn with the position."""
        h = self.hyper
        frequency, magnitude = self.angles[windowed]
        angle = positions[:, None, None].float() * frequency
        cos, sin = angle.cos() * magnitude, angle.sin() * magnitude
        part, rest = x[..., : h.rotary], x[..., h.rotary :]
        if h.style.halves:
            a, b = part.chunk(2, -1)
            turned = self.torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
        else:
            a, b = part[..., 0::2], part[..., 1::2]
            turned = self.torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
        return self.torch.cat((turned, rest), -1)

    def _attention(self, i: int, normed: Tensor, positions: Tensor) -> Tensor:
        h, p, n = self.hyper, f"blk.{i}.", len(normed)
        n_kv, windowed = h.n_kv_heads[i], bool(h.windows[i])
        if p + "attn_qkv.weight" in self.tensors:
            widths = [h.n_heads * h.head_dim, n_kv * h.head_dim, n_kv * h.value_dim]
            q, k, v = self._product(normed, p + "attn_qkv").split(widths, -1)
        else:
            q, k, v = (self._product(normed, f"{p}attn_{name}") for name in "qkv")
        q, k, v = q.view(n, h.n_heads, -1), k.view(n, n_kv, -1), v.view(n, n_kv, -1)
        if p + "attn_q_norm.weight" in self.tensors:
            q, k = self._norm(q, p + "attn_q_norm"), self._norm(k, p + "attn_k_norm")
        q, k = self._rotate(q, positions, windowed), self._rotate(k, positions, windowed)
        keys, values = self.caches[i]
        last = self.n_tokens + n
        keys[:, self.n_tokens : last] = k.transpose(0, 1).to(self.dtype)
        values[:, self.n_tokens : last] = v.transpose(0, 1).to(self.dtype)
        return self._attend(i, q, keys[:, :last], values[:, :last], positions)

    def _attend(self, i: int, q: Tensor, keys: Tensor, values: Tensor, positions: Tensor) -> Tensor:
        """q [token][head][width] over keys and values [kv head][token][width] -> [token][head * width]."""
        h, torch = self.hyper, self.torch
        sinks = self.tensors.get(f"blk.{i}.attn_sinks.weight")
        slots = torch.arange(keys.shape[1], device=self.device)
        mask = slots <= positions[:, None]
        if h.windows[i]:
            mask &= slots > positions[:, None] - h.windows[i]
        q = q.transpose(0, 1).to(self.dtype)
        repeat = q.shape[0] // keys.shape[0]
        if sinks is None and not h.score_cap:
            attend = torch.nn.functional.scaled_dot_product_attention
            keys, values = keys.repeat_interleave(repeat, 0), values.repeat_interleave(repeat, 0)
            out = attend(q[None], keys[None], values[None], attn_mask=mask, scale=h.score_factor)[0]
            return out.transpose(0, 1).reshape(len(positions), -1).float()
        grouped = q.reshape(keys.shape[0], repeat * len(positions), -1)
        scores = (grouped @ keys.transpose(1, 2)).float().view(h.n_heads, len(positions), -1) * h.score_factor
        if h.score_cap:
            scores = torch.tanh(scores / h.score_cap) * h.score_cap
        scores = scores.masked_fill(~mask, float("-inf"))
        if sinks is not None:
            more = sinks[:, None, None].expand(-1, len(positions), 1)
            chances = torch.softmax(torch.cat((scores, more), -1), -1)[..., :-1]
        else:
            chances = torch.softmax(scores, -1)
        chances = chances.to(self.dtype).reshape(keys.shape[0], repeat * len(positions), -1)
        out = (chances @ values).reshape(h.n_heads, len(positions), -1)
        return out.transpose(0, 1).reshape(len(positions), -1).float()

    def _latent(self, i: int, normed: Tensor, positions: Tensor) -> Tensor:
        """Multi-head latent attention in its absorbed form (arXiv 2405.04434, section 2.1)."""
        h, p, n, torch = self.hyper, f"blk.{i}.", len(normed), self.torch
        if p + "attn_q_a.weight" in self.tensors:
            low = self._norm(self._product(normed, p + "attn_q_a"), p + "attn_q_a_norm")
            q = self._product(low, p + "attn_q_b")
        else:
            q = self._product(normed, p + "attn_q")
        q = q.view(n, h.n_heads, h.nope_dim + h.rotary)
        kv = self._product(normed, p + "attn_kv_a_mqa")
        latent = self._norm(kv[:, : h.kv_rank], p + "attn_kv_a_norm")
        turned = self._rotate(kv[:, None, h.kv_rank :], positions, False)[:, 0]
        keys, _ = self.caches[i]
        last = self.n_tokens + n
        keys[0, self.n_tokens : last] = torch.cat((latent, turned), -1).to(self.dtype)
        k_b, v_b = self.tensors[p + "attn_k_b.weight"], self.tensors[p + "attn_v_b.weight"]
        nope = torch.einsum("thd,hrd->thr", q[..., : h.nope_dim].to(self.dtype), k_b).float()
        absorbed = torch.cat((nope, self._rotate(q[..., h.nope_dim :], positions, False)), -1)
        seen = keys[:, :last]
        out = self._attend(i, absorbed, seen, seen[..., : h.kv_rank], positions).view(n, h.n_heads, h.kv_rank)
        return torch.einsum("thr,hvr->thv", out.to(self.dtype), v_b).reshape(n, -1).float()

    def _gate(self, gate: Tensor, up: Tensor) -> Tensor:
        functional, kind = self.torch.nn.functional, self.hyper.style.activation
        if kind == "silu":
            return functional.silu(gate) * up
        if kind == "gelu_tanh":
            return functional.gelu(gate, approximate="tanh") * up
        if kind == "swiglu_oai":
            gate, up = gate.clamp(max=OAI_LIMIT), up.clamp(-OAI_LIMIT, OAI_LIMIT)
            return gate * self.torch.sigmoid(OAI_ALPHA * gate) * (up + 1)
        raise UnsupportedModel(f"{self.weights.name}: the PyTorch backend has no `{kind}` activation")

    def _dense(self, p: str, suffix: str, normed: Tensor) -> Tensor:
        up = self._product(normed, f"{p}ffn_up{suffix}")
        if f"{p}ffn_gate{suffix}.weight" in self.tensors:
            gate = self._product(normed, f"{p}ffn_gate{suffix}")
        else:
            gate, up = up.chunk(2, -1)
        return self._product(self._gate(gate, up), f"{p}ffn_down{suffix}")

    def _experts(self, p: str, normed: Tensor) -> Tensor:
        chosen, shares = self._route(p, normed)
        out = self.torch.zeros_like(normed)
        for e in chosen.unique().tolist():
            token, slot = (chosen == e).nonzero(as_tuple=True)
            gate, up = (self._expert(f"{p}ffn_{name}_exps", e, normed[token]) for name in ("gate", "up"))
            fed = self._expert(p + "ffn_down_exps", e, self._gate(gate, up))
            out.index_add_(0, token, fed * shares[token, slot, None])
        if p + "ffn_up_shexp.weight" in self.tensors:
            shared = self._dense(p, "_shexp", normed)
            strength = self.tensors.get(p + "ffn_gate_inp_shexp.weight")
            if strength is not None:
                shared = shared * self.torch.sigmoid(normed @ strength.reshape(-1, 1).float())
            out = out + shared
        return out

    def _expert(self, name: str, e: int, x: Tensor) -> Tensor:
        out = (x.to(self.dtype) @ self.tensors[name + ".weight"][e].T).float()
        bias = self.tensors.get(name + ".bias")
        return out if bias is None else out + bias[e].float()

    def _route(self, p: str, normed: Tensor) -> tuple[Tensor, Tensor]:
        """(experts, weights), each [token][slot]."""
        h, torch = self.hyper, self.torch
        scores = normed @ self.tensors[p + "ffn_gate_inp.weight"].float().T
        bias = self.tensors.get(p + "ffn_gate_inp.bias")
        scores = scores if bias is None else scores + bias
        if h.router == "softmax":
            scores = torch.softmax(scores, -1)
        elif h.router == "sigmoid":
            scores = torch.sigmoid(scores)
        selection = self.tensors.get(p + "exp_probs_b.bias")
        chosen = (scores if selection is None else scores + selection).topk(h.per_token, -1).indices
        shares = scores.gather(-1, chosen)
        if h.router == "softmax_of_chosen":
            shares = torch.softmax(shares, -1)
        elif h.normalize:
            shares = shares / shares.sum(-1, keepdim=True)
        return chosen, shares * h.expert_factor
