"""llama.cpp's file mixes (`llama-quantize` types) as rules: which block type each tensor gets.

Source of every rule: llama.cpp 0c1e57098, src/llama-quant.cpp. A mix names its base type and what differs
from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from modeldb.formats import GGML_BLOCKS
from modeldb.tensor import Tensor


@dataclass(frozen=True, slots=True)
class Where:
    """Where a tensor stands: `i` of `n` layers; `j` of `n_value` value-like tensors; what the model is
    like."""

    n: int
    gqa: int  # query heads per key/value head
    n_experts: int
    imatrix: bool
    falcon: bool
    is_70b: bool
    glm5_next: bool = False
    bailingmoe3: bool = False
    n_value: int = 0
    i: int = 0
    j: int = 0

    @property
    def first_eighth(self) -> bool:
        return self.i < self.n // 8


Rule = str | Callable[[Where], str]


def more_bits(i: int, n: int) -> bool:
    """llama.cpp's use_more_bits: the first and last eighth, and every third layer between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


@dataclass(frozen=True, slots=True)
class Mix:
    """Types by place; "" means `base`. `*_e8` apply to models of exactly eight experts (Mixtral)."""

    base: str
    embedding: str = ""
    head: str = "Q6_K"
    value: Rule = ""
    key: Rule = ""
    query: Rule = ""
    output: Rule = ""
    down: Rule = ""
    gate_up: Rule = ""
    value_e8: str = "Q8_0"
    key_e8: str = "Q8_0"
    output_e8: str = ""
    low_bit: bool = False  # IQ1 and IQ2 mixes: no 70B raise
    falcon_output: str = ""


def _if(test: Callable[[Where], object], then: str, other: str = "") -> Rule:
    return lambda w: then if test(w) else other


def _grouped(then: str, other: str = "") -> Rule:
    return _if(lambda w: w.gqa >= 4, then, other)


def _low_bit(base: str, strong: bool, embedding: str, output: str = "") -> Mix:
    """The mixes of two bits and less; `strong` are IQ2_S and IQ2_M."""
    better = "IQ3_S" if strong else "Q2_K"
    return Mix(
        base,
        embedding,
        head="Q5_K",
        value=_if(lambda w: w.gqa >= 4 or w.n_experts >= 4, "Q4_K", better),
        output=output,
        down=_if(lambda w: w.first_eighth, better),
        value_e8="Q4_K",
        key_e8="Q4_K",
        output_e8="Q5_K",
        low_bit=True,
    )


def _down_q4_k_m(w: Where) -> str:
    if w.falcon:
        return "Q6_K" if w.i < w.n // 16 else "Q5_K" if more_bits(w.i, w.n) else "Q4_K"
    return "Q6_K" if more_bits(w.i, w.n) else ""


def _down_q3_k_m(w: Where) -> str:
    if w.i < w.n // 16:
        return "Q5_K"
    return "Q4_K" if not w.falcon or more_bits(w.i, w.n) else "Q3_K"


_VALUE_MORE_BITS = _if(lambda w: more_bits(w.j, w.n_value), "Q6_K")
_IQ4 = Mix(
    "IQ4_XS",
    value=_grouped("Q5_K"),
    down=_if(lambda w: w.first_eighth and not w.imatrix, "Q5_K"),
    output_e8="Q5_K",
)

MIXES: dict[str, Mix] = {
    "F32": Mix("F32", head=""),
    "F16": Mix("F16", head=""),
    "BF16": Mix("BF16", head=""),
    "Q4_0": Mix("Q4_0", down=_if(lambda w: w.imatrix and w.first_eighth, "Q4_1")),
    "Q4_1": Mix("Q4_1"),
    "Q5_0": Mix("Q5_0", down=_if(lambda w: w.imatrix and w.first_eighth, "Q5_1")),
    "Q5_1": Mix("Q5_1"),
    "Q8_0": Mix("Q8_0", head="Q8_0"),
    "Q1_0": Mix("Q1_0"),
    "Q2_0": Mix("Q2_0", "Q4_K"),
    "Q2_K": Mix("Q2_K", value=_grouped("Q4_K", "Q3_K"), output="Q3_K", down="Q3_K", output_e8="Q5_K"),
    "Q2_K_S": Mix("Q2_K", value=_grouped("Q4_K"), down=_if(lambda w: w.first_eighth, "Q4_K")),
    "Q3_K_S": Mix("Q3_K", output_e8="Q5_K"),
    "Q3_K_M": Mix(
        "Q3_K",
        value=_if(lambda w: w.j < 2, "Q5_K", "Q4_K"),
        output="Q4_K",
        down=_down_q3_k_m,
        output_e8="Q5_K",
    ),
    "Q3_K_L": Mix(
        "Q3_K",
        value="Q5_K",
        output="Q5_K",
        down=_if(lambda w: w.falcon, "Q4_K", "Q5_K"),
        falcon_output="Q4_K",
    ),
    "Q4_K_S": Mix(
        "Q4_K",
        value=_if(lambda w: w.j < 4, "Q5_K"),
        down=_if(lambda w: w.first_eighth and not w.falcon, "Q5_K"),
        output_e8="Q5_K",
    ),
    "Q4_K_M": Mix("Q4_K", value=_VALUE_MORE_BITS, down=_down_q4_k_m, output_e8="Q5_K"),
    "Q5_K_S": Mix("Q5_K"),
    "Q5_K_M": Mix("Q5_K", value=_VALUE_MORE_BITS, down=_if(lambda w: more_bits(w.i, w.n), "Q6_K")),
    "Q6_K": Mix("Q6_K"),
    "IQ1_S": _low_bit("IQ1_S", False, "Q2_K", "IQ2_XXS"),
    "IQ1_M": _low_bit("IQ1_M", False, "Q2_K", "IQ2_XXS"),
    "IQ2_XXS": _low_bit("IQ2_XXS", False, "Q2_K"),
    "IQ2_XS": _low_bit("IQ2_XS", False, "Q2_K"),
    "IQ2_S": _low_bit("IQ2_XS", True, "IQ3_S", "IQ3_S"),
    "IQ2_M": _low_bit("IQ2_S", True, "IQ3_S", "IQ3_S"),
    "IQ3_XXS": Mix(
        "IQ3_XXS",
        "IQ3_S",
        head="Q5_K",
        value=lambda w: "Q4_K" if w.gqa >= 4 else "IQ3_XXS" if w.imatrix else "IQ3_S",
        key="IQ2_S",
        query="IQ2_S",
        output="IQ3_S",
        down=lambda w: "" if w.imatrix else "Q4_K" if w.first_eighth else "Q3_K",
        output_e8="Q5_K",
    ),
    "IQ3_XS": Mix(
        "IQ3_S",
        value=_grouped("Q4_K"),
        key="IQ3_XXS",
        query="IQ3_XXS",
        gate_up=_if(lambda w: w.n // 8 <= w.i < 7 * w.n // 8, "IQ3_XXS"),
        output_e8="Q5_K",
    ),
    "IQ3_S": Mix("IQ3_S", value=_grouped("Q4_K"), output_e8="Q5_K"),
    "IQ3_M": Mix(
        "IQ3_S",
        value="Q4_K",
        output="Q4_K",
        down=_if(lambda w: w.first_eighth or (w.n_experts == 8 and more_bits(w.i, w.n)), "Q4_K"),
        output_e8="Q5_K",
    ),
    "IQ4_XS": _IQ4,
    "IQ4_NL": replace(_IQ4, base="IQ4_NL"),
    "TQ1_0": Mix("TQ1_0", "Q4_K"),
    "TQ2_0": Mix("TQ2_0", "Q4_K"),
    "MXFP4_MOE": Mix("Q8_0", head="Q8_0"),
}
NEEDS_IMATRIX = frozenset(
    {"Q2_K_S", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS"}
)

# what a type becomes when rows are no multiple of its block; F16 when that does not divide them either
FALLBACK = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip

# 2-D tensors that the quantizer leaves alone: those the converter writes in F32,
# and those it writes in 16 bits
KEPT_F32 = (
    "ffn_gate_inp", "altup", "ssm_conv1d", "shortconv.conv.weight", "position_embd", "token_types",
    "ffn_gate_tid2eid",
    "attn_rel_b.weight", "time_mix_first.weight", "time_mix_w0.weight", "time_mix_v0.weight",
    "time_mix_a0.weight",
    "time_mix_lerp_fused.weight", "indexer.k_proj.weight", "indexer.q_proj.weight",
)  # fmt: skip
KEPT_F16 = (
    "laurel", "per_layer_model_proj", "altup_proj", "altup_unembd_proj", "altup_router.",
    *(f"time_mix_{x}.weight" for x in ("w1", "w2", "v1", "v2", "a1", "a2", "g1", "g2", "decay_w1",
    "decay_w2")),
)  # fmt: skip

# what GLM-5.3-Flash's converter writes in F32, what the quantizer leaves in 16 bits, and what it keeps above 8
GLM5_NEXT_F32 = ("hc_attn_", "hc_ffn_", "indexer_compressor_")
GLM5_NEXT_F16 = (
    "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight",
    "ssm_g_b.weight", "ssm_beta.weight", "attn_kv_a_mqa.weight", "attn_k_b.weight", "attn_v_b.weight",
)  # fmt: skip
GLM5_NEXT_Q8_0 = ("attn_q_a", "attn_q_b", "nextn.eh_proj")

PLACES = (
    ("attn_qkv.weight", "value"), ("attn_kv_b.weight", "value"), ("attn_v.weight", "value"),
    ("attn_k.weight", "key"),
    ("attn_q.weight", "query"), ("attn_output.weight", "output"), ("ffn_up", "up"), ("ffn_gate", "gate"),
    ("ffn_down", "down"),
)  # fmt: skip


def kept(tensor: Tensor) -> str:
    """The type of a tensor that is never quantized, or "" for one that is."""
    name, suffix = tensor.name, tensor.name.rsplit(".", 1)[-1]
    if any(k in name for k in KEPT_F16) and len(tensor.shape) > 1:
        return "F16"
    if (
        len(tensor.shape) < 2
        or suffix != "weight"
        or "_norm.weight" in name
        or any(k in name for k in KEPT_F32)
    ):
        return "F32"
    return ""


def _kept_by_glm5_next(t: Tensor) -> str:
    if any(k in t.name for k in GLM5_NEXT_F32):
        return "F32"
    return "F16" if any(k in t.name for k in GLM5_NEXT_F16) else ""


def place(name: str) -> str:
    """Which rule of a mix a tensor falls under, by its name; "" for none."""
    return next((where for key, where in PLACES if key in name), "")


def types(tensors: Iterable[Tensor], mix: Mix, where: Where, experts_mxfp4: bool = False) -> dict[str, str]:
    """{tensor name: ggml type} over the tensors of one file, in llama.cpp's order of counting.

    `where` describes the model (its `i` and `j` are filled in here). `experts_mxfp4`: 3-D tensors become
    MXFP4.
    """
    ordered = sorted(tensors, key=lambda t: (_layer(t.name), t.name))
    tied = not any(t.name == "output.weight" for t in ordered)
    where = replace(where, n_value=sum(place(t.name) == "value" for t in ordered))
    counts = dict.fromkeys(("value", "down", "gate", "up"), 0)
    chosen: dict[str, str] = {}
    for t in ordered:
        if t.format or (fixed := kept(t) or (_kept_by_glm5_next(t) if where.glm5_next else "")):
            chosen[t.name] = t.format or fixed
            continue
        spot = place(t.name)
        by_block = where.n_experts > 1 and not (mix.low_bit and spot == "down")
        i = max(_layer(t.name), 0) if by_block else counts.get(spot, 0)
        here = replace(where, i=i, j=counts["value"])
        stacked = len(t.shape) > 2 and (not where.bailingmoe3 or spot in ("up", "gate", "down"))
        wanted = "MXFP4" if experts_mxfp4 and stacked else _wanted(t, spot, mix, here, tied)
        chosen[t.name] = _fitting(wanted, t.shape[0])
        if spot in counts:
            counts[spot] += 1
    return chosen


def _layer(name: str) -> int:
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _wanted(t: Tensor, spot: str, mix: Mix, w: Where, tied: bool) -> str:
    if mix.base in ("F32", "F16", "BF16"):
        return mix.base
    if w.glm5_next and any(k in t.name for k in GLM5_NEXT_Q8_0):
        return "Q8_0"
    embedding = t.name in ("token_embd.weight", "per_layer_token_embd.weight")
    if t.name == "output.weight" or (tied and embedding):
        return "Q8_0" if w.falcon or t.shape[0] % GGML_BLOCKS[mix.base][0] else mix.head
    if embedding:
        return mix.embedding or mix.base
    if mix.base == "Q8_0":
        return "Q8_0"
    eight = w.n_experts == 8
    match spot:
        case "value":
            return _value(mix, w)
        case "key":
            return mix.key_e8 if eight else _ask(mix.key, w) or mix.base
        case "query":
            return _ask(mix.query, w) or mix.base
        case "output":
            if w.falcon and not mix.low_bit:
                return mix.falcon_output or mix.base
            return (mix.output_e8 if eight else _ask(mix.output, w)) or mix.base
        case "down":
            return _ask(mix.down, w) or mix.base
        case "up" | "gate":
            return _ask(mix.gate_up, w) or mix.base
    return mix.base


def _value(mix: Mix, w: Where) -> str:
    if w.n_experts == 8:
        return mix.value_e8
    chosen = _ask(mix.value, w) or mix.base
    return "Q5_K" if w.is_70b and not mix.low_bit and chosen in ("Q3_K", "Q4_K") else chosen


def _ask(rule: Rule, w: Where) -> str:
    return rule if isinstance(rule, str) else rule(w)


def _fitting(wanted: str, row: int) -> str:
    for candidate in (wanted, FALLBACK.get(wanted, wanted)):
        if row % GGML_BLOCKS[candidate][0] == 0:
            return candidate
    return "F16"
