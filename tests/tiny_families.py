"""Tiny models of families that differ in their norms, positions and feed-forwards, each said in a line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gguf
from tiny_parts import (
    CONTEXT,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    INNER,
    KV_HEADS,
    LAYERS,
    VOCAB,
    Tiny,
    common,
    dense,
    experts,
    mixture,
)  # fmt: skip

SIGMOID = gguf.ExpertGatingFuncType.SIGMOID
BIAS = "exp_probs_b.bias"
PRE = ("attn_norm", "ffn_norm")
SANDWICH = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")


@dataclass(frozen=True)
class Family:
    """What the layers of an architecture hold. `norms` lie in each layer; `heads`: norms of queries and keys (`head`,
    `full`, or `each` head its own); `ffn`: `gated`, `fused`, `plain` or a function of (writer, prefix, layer)."""

    norms: tuple[str, ...] = PRE
    behind: float = 1.0  # about what norms behind mixer and feed-forward hold
    norm_bias: bool = False
    heads: str = ""
    fused: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    ffn: str | Callable[[Tiny, str, int], None] = "gated"
    ffn_bias: bool = False
    rotary: int = HEAD_DIM
    kv: int = KV_HEADS
    n_layers: int = LAYERS
    stated_inner: int = INNER
    head: bool = True
    keys: Callable[[Tiny], None] = lambda t: None
    more: Callable[[Tiny, str], None] = lambda t, p: None

    def __call__(self, t: Tiny) -> None:
        common(t, kv=self.kv, rotary=self.rotary, layers=self.n_layers, inner=self.stated_inner)
        t.w.add_layer_norm_eps(1e-5)
        self.keys(t)
        if self.norm_bias:
            t.vector("output_norm.bias", HIDDEN, 0.0)
        if self.head:
            t.head()
        for i in range(self.n_layers):
            p = f"blk.{i}."
            for name in self.norms:
                t.vector(f"{p}{name}.weight", HIDDEN, self.behind if name.startswith("post_") else 1.0)
                if self.norm_bias:
                    t.vector(f"{p}{name}.bias", HIDDEN, 0.0)
            self._attention(t, p)
            self.more(t, p)
            self._feed_forward(t, p, i)

    def _attention(self, t: Tiny, p: str) -> None:
        own, kv = HEADS * HEAD_DIM, self.kv * HEAD_DIM
        parts = (("qkv", own + 2 * kv),) if self.fused else (("q", own), ("k", kv), ("v", kv))
        for name, rows in parts:
            t.matrix(f"{p}attn_{name}", rows, HIDDEN)
            if self.qkv_bias:
                t.vector(f"{p}attn_{name}.bias", rows, 0.0)
        t.matrix(p + "attn_output", HIDDEN, own)
        if self.output_bias:
            t.vector(p + "attn_output.bias", HIDDEN, 0.0)
        for name, n in (("q", HEADS), ("k", self.kv)):
            shape = {"head": HEAD_DIM, "full": n * HEAD_DIM, "each": (n, HEAD_DIM)}.get(self.heads)
            if shape:
                t.vector(f"{p}attn_{name}_norm.weight", shape)

    def _feed_forward(self, t: Tiny, p: str, i: int) -> None:
        if callable(self.ffn):
            self.ffn(t, p, i)
        elif self.ffn == "gated":
            dense(t, p)
        else:
            up = 2 * INNER if self.ffn == "fused" else INNER
            t.matrix(p + "ffn_up", up, HIDDEN)
            t.matrix(p + "ffn_down", HIDDEN, INNER)
            if self.ffn_bias:
                t.vector(p + "ffn_up.bias", up, 0.0)
                t.vector(p + "ffn_down.bias", HIDDEN, 0.0)


def window(t: Tiny, tokens: int = 16) -> None:
    t.w.add_sliding_window(tokens)


def _cohere(t: Tiny) -> None:
    t.w.add_logit_scale(0.25)


def _cohere2(t: Tiny) -> None:
    _cohere(t)
    window(t)


def _olmo3(t: Tiny) -> None:
    window(t)
    t.w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    t.w.add_rope_scaling_factor(8.0)
    t.w.add_rope_scaling_orig_ctx_len(64)


def _clamped(t: Tiny) -> None:
    t.w.add_clamp_kqv(0.8)


def _parallel(t: Tiny) -> None:
    t.w.add_parallel_residual(True)


def _one_after_another(t: Tiny) -> None:
    t.w.add_parallel_residual(False)


def _embedding_norm(t: Tiny) -> None:
    t.vector("token_embd_norm.weight", HIDDEN)
    t.vector("token_embd_norm.bias", HIDDEN, 0.0)


def _alibi(t: Tiny) -> None:
    t.w.add_max_alibi_bias(6.0)
    _clamped(t)


def _xielu(t: Tiny) -> None:
    t.w.add_xielu_alpha_p([0.5, 0.8, 1.1])
    t.w.add_xielu_alpha_n([0.9, 0.6, 0.3])
    t.w.add_xielu_beta([0.5, 0.4, 0.6])
    t.w.add_xielu_eps([-1e-6] * LAYERS)


def _head_bias(t: Tiny) -> None:
    t.vector("output.bias", VOCAB, 0.0)


def _positions(t: Tiny) -> None:
    t.matrix("position_embd", CONTEXT, HIDDEN, "F32", sigma=0.5)


def _sections(t: Tiny) -> None:
    t.w.add_rope_dimension_sections([12, 10, 10, 0])


def _router(n: int = 8, used: int = 3, inner: int = 256, shared: int = 0, bias: str = "", leading: int = 0,
            implied: bool = False) -> tuple[Callable[[Tiny], None], Callable[[Tiny, str, int], None]]:  # fmt: skip
    """(keys, tensors) of a mixture; `implied`: its width is the feed-forward's."""
    width = INNER if implied else inner

    def keys(t: Tiny) -> None:
        mixture(t, n, used, 0 if implied else inner, shared)
        if leading:
            t.w.add_leading_dense_block_count(leading)

    def tensors(t: Tiny, p: str, i: int) -> None:
        if i < leading:
            dense(t, p)
            return
        experts(t, p, n, width)
        if bias:
            t.vector(p + bias, n, 0.0, 0.3)
        if shared:
            dense(t, p, shared, "_shexp")

    return keys, tensors


def routed(keys: Callable[[Tiny], None] = lambda t: None, **sizes: int | bool | str) -> dict[str, Callable]:
    own, tensors = _router(**sizes)  # type: ignore[arg-type]

    def both(t: Tiny) -> None:
        own(t)
        keys(t)

    return {"keys": both, "ffn": tensors}


def _gating(scale: float = 2.5, norm: bool = True, shared: int = 1) -> Callable[[Tiny], None]:
    def keys(t: Tiny) -> None:
        t.w.add_expert_gating_func(SIGMOID)
        t.w.add_expert_weights_scale(scale)
        t.w.add_expert_weights_norm(norm)
        t.w.add_expert_shared_count(shared)

    return keys


def _sigmoid(t: Tiny) -> None:
    t.w.add_expert_gating_func(SIGMOID)


def _grouped(t: Tiny) -> None:
    _gating()(t)
    t.w.add_expert_group_count(4)
    t.w.add_expert_group_used_count(2)


def _afmoe(t: Tiny) -> None:
    _gating()(t)
    window(t)


def _ernie(t: Tiny) -> None:
    t.w.add_interleave_moe_layer_step(1)


def _glm4moe(t: Tiny) -> None:
    _gating()(t)
    t.w.add_nextn_predict_layers(0)


def _llama4(t: Tiny) -> None:
    t.w.add_interleave_moe_layer_step(1)
    t.vector("rope_freqs.weight", HEAD_DIM // 2, 4.0, 1.0)


def gate(t: Tiny, p: str) -> None:
    t.matrix(p + "attn_gate", HEADS * HEAD_DIM, HIDDEN)


def _sub_norms(t: Tiny, p: str) -> None:
    t.vector(p + "attn_sub_norm.weight", HEADS * HEAD_DIM)
    t.vector(p + "ffn_sub_norm.weight", INNER)


_GPT = {"norm_bias": True, "qkv_bias": True, "output_bias": True, "ffn": "plain", "ffn_bias": True}

FAMILIES: dict[str, tuple[str, Family]] = {
    "qwen": ("qwen", Family(fused=True, qkv_bias=True, kv=HEADS, stated_inner=2 * INNER)),
    "qwen2vl": ("qwen2vl", Family(qkv_bias=True, keys=_sections)),
    "qwen3vl": ("qwen3vl", Family(heads="head", keys=_sections)),
    "seed-oss": ("seed_oss", Family(("attn_norm", "post_attention_norm"), qkv_bias=True)),
    "exaone": ("exaone", Family()),
    "internlm2": ("internlm2", Family()),
    "chatglm": ("chatglm", Family(fused=True, qkv_bias=True, ffn="fused", rotary=32)),
    "glm4": ("glm4", Family(SANDWICH, qkv_bias=True, ffn="fused", rotary=32)),
    "ernie4.5": ("ernie4_5", Family()),
    "arcee": ("arcee", Family(ffn="plain")),
    "bitnet": ("bitnet", Family(more=_sub_norms, head=False)),
    "apertus": ("apertus", Family(heads="head", ffn="plain", keys=_xielu)),
    "smollm3": ("smollm3", Family(n_layers=4)),
    "hunyuan": ("hunyuan-dense", Family(heads="head")),
    "exaone4": ("exaone4", Family(("post_attention_norm", "post_ffw_norm"), heads="head")),
    "olmo2": ("olmo2", Family(("post_attention_norm", "post_ffw_norm"), heads="full")),
    "olmo3": ("olmo2", Family(("post_attention_norm", "post_ffw_norm"), heads="full", n_layers=4, keys=_olmo3)),
    "olmoe": ("olmoe", Family(heads="full", kv=HEADS, **routed(implied=True))),
    "phimoe": ("phimoe", Family(norm_bias=True, qkv_bias=True, output_bias=True,
                                **routed(_head_bias, used=2, implied=True))),
    "qwen3vlmoe": ("qwen3vlmoe", Family(heads="head", **routed(_sections, used=2))),
    "minimax-m2": ("minimax-m2", Family(heads="full", **routed(_sigmoid, bias=BIAS, inner=INNER))),
    "dots1": ("dots1", Family(heads="head", kv=HEADS, **routed(_gating(), bias=BIAS, shared=256, leading=1))),
    "glm4moe": ("glm4moe", Family(("attn_norm", "post_attention_norm"), heads="head", qkv_bias=True, rotary=32,
                                  **routed(_glm4moe, bias=BIAS, shared=256, leading=1))),
    "bailingmoe2": ("bailingmoe2", Family(heads="head", fused=True,
                                          **routed(_grouped, bias=BIAS, shared=256, leading=1))),
    "ernie4.5-moe": ("ernie4_5-moe", Family(**routed(_ernie, bias=BIAS, shared=256, leading=1))),
    "hunyuan-moe": ("hunyuan-moe", Family(heads="head", **routed(shared=256, inner=INNER))),
    "afmoe": ("afmoe", Family(SANDWICH, heads="head", more=gate, n_layers=4,
                              **routed(_afmoe, bias=BIAS, shared=256, leading=1))),
    "llama4": ("llama4", Family(n_layers=4, **routed(_llama4, used=1, shared=256))),
    "command-r": ("command-r", Family(("attn_norm",), keys=_cohere, head=False)),
    "cohere2": ("cohere2", Family(("attn_norm",), n_layers=4, keys=_cohere2, head=False)),
    "stablelm": ("stablelm", Family(norm_bias=True, qkv_bias=True, rotary=16)),
    "stablelm-12b": ("stablelm", Family(("attn_norm",), norm_bias=True, heads="each", rotary=16)),
    "olmo": ("olmo", Family((), keys=_clamped)),
    "dbrx": ("dbrx", Family(("attn_norm", "attn_output_norm"), fused=True, **routed(_clamped, implied=True))),
    "falcon-7b": ("falcon", Family(("attn_norm",), norm_bias=True, fused=True, ffn="plain", kv=1)),
    "falcon-40b": ("falcon", Family(("attn_norm", "attn_norm_2"), norm_bias=True, fused=True, ffn="plain")),
    "gptneox": ("gptneox", Family(fused=True, rotary=16, keys=_parallel, kv=HEADS, **_GPT)),
    "gptneox-stacked": ("gptneox", Family(fused=True, rotary=16, keys=_one_after_another, kv=HEADS, **_GPT)),
    "phi2": ("phi2", Family(("attn_norm",), rotary=32, kv=HEADS, keys=_head_bias, **_GPT)),
    "starcoder2": ("starcoder2", Family(**_GPT)),
    "starcoder": ("starcoder", Family(fused=True, kv=1, keys=_positions, **_GPT)),
    "gpt2": ("gpt2", Family(fused=True, kv=HEADS, keys=_positions, **_GPT)),
    "gptj": ("gptj", Family(("attn_norm",), norm_bias=True, rotary=32, kv=HEADS, keys=_head_bias, ffn="plain",
                            ffn_bias=True)),
    "bloom": ("bloom", Family(fused=True, kv=HEADS, keys=_embedding_norm, **_GPT)),
    "mpt": ("mpt", Family(fused=True, ffn="plain", keys=_alibi)),
}  # fmt: skip
