"""llama.cpp's architectures: which Hugging Face model types they serve, and how their files differ from the
walk.

Source: llama.cpp 0c1e57098, src/llama-arch.cpp, src/models and convert_hf_to_gguf. `Layout` is one file's
dialect.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# Hugging Face model_type -> llama.cpp architecture
OF_MODEL_TYPE = {
    "afmoe": "afmoe", "apertus": "apertus", "arcee": "arcee", "bailing_hybrid": "bailingmoe3",
    "bailing_moe_v2": "bailingmoe2", "bert": "bert",
    "bitnet": "bitnet", "bloom": "bloom", "cohere": "command-r", "cohere2": "cohere2", "dbrx": "dbrx",
    "deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2", "dots1": "dots1", "ernie4_5": "ernie4_5",
    "ernie4_5_moe": "ernie4_5-moe", "exaone": "exaone", "exaone4": "exaone4", "falcon": "falcon",
    "falcon_h1": "falcon-h1",
    "falcon_mamba": "mamba", "gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3",
    "gemma3_text": "gemma3",
    "gemma3n": "gemma3n", "gemma4": "gemma4", "gemma4_unified": "gemma4", "glm": "chatglm", "glm4": "glm4",
    "glm4_moe": "glm4moe", "glm4_moe_lite": "deepseek2", "gpt2": "gpt2", "gpt_bigcode": "starcoder",
    "gpt_neox": "gptneox",
    "gpt_oss": "gpt-oss", "gptj": "gptj", "granite": "granite", "granitemoe": "granitemoe",
    "granitemoehybrid": "granitehybrid", "hunyuan_v1_dense": "hunyuan-dense", "hunyuan_v1_moe": "hunyuan-moe",
    "internlm2": "internlm2", "internlm3": "llama", "jamba": "jamba", "kimi_k2": "deepseek2",
    "kimi_k25": "deepseek2",
    "kimi_linear": "kimi-linear", "lfm2": "lfm2", "lfm2_moe": "lfm2moe", "llama": "llama", "llama4": "llama4",
    "mamba": "mamba", "mamba2": "mamba2", "mimo": "qwen2", "mimo_v2_flash": "mimo2", "minicpm3": "minicpm3",
    "minimax": "minimax-01", "minimax_text_01": "minimax-01", "minimax_m1": "minimax-01",
    "minimax_m2": "minimax-m2", "minimax_m3_vl": "minimax-m3", "minimax_m3_vl_text": "minimax-m3",
    "ministral": "llama", "mistral": "llama", "mistral3": "llama",
    "mixtral": "llama",
    "nemotron-nas": "deci", "nemotron_h": "nemotron_h", "nomic_bert": "nomic-bert", "olmo": "olmo",
    "olmo2": "olmo2",
    "olmo3": "olmo2", "olmoe": "olmoe", "phi": "phi2", "phi3": "phi3", "phimoe": "phimoe", "qwen": "qwen",
    "qwen2": "qwen2", "qwen2_5_vl": "qwen2vl", "qwen2_moe": "qwen2moe", "qwen3": "qwen3", "qwen3_5": "qwen35",
    "qwen3_5_moe": "qwen35moe", "qwen3_5_moe_text": "qwen35moe", "qwen3_moe": "qwen3moe",
    "qwen3_next": "qwen3next",
    "qwen3_vl": "qwen3vl", "qwen3_vl_moe": "qwen3vlmoe", "seed_oss": "seed_oss", "smollm3": "smollm3",
    "stablelm": "stablelm", "starcoder2": "starcoder2", "step3p7": "step35", "xlm-roberta": "bert",
    "glm_moe_dsa": "glm-dsa", "chatglm": "chatglm", "deci": "deci", "mpt": "mpt", "deepseek_v4": "deepseek4",
    "deepseek_v32": "deepseek32", "glm5_next": "glm5-next",
    "solar_open": "glm4moe", "hy_v3": "hy_v3", "muse_glimmer": "muse-glimmer", "granite_swa": "granite_swa",
    "mistral3 (MLA MoE text)": "deepseek2",  # conversion/mistral.py: MistralMoeModel
}  # fmt: skip
# what llama.cpp has no architecture for and the bundled runner executes: Hugging Face model_type -> the runner's name
RUNNER_ALONE = {"opt": "opt", "mllama": "mllama", "longcat_flash": "longcat-flash", "chatglm1": "chatglm1"}
WITHOUT_GRAPH = frozenset({"gptj"})  # llama.cpp has their names, from ggml's examples, and cannot run them


@dataclass(frozen=True, slots=True)
class Layout:
    """How an architecture's GGUF differs from the walk.

    Attributes:
        exact: the layout is confirmed tensor by tensor against llama.cpp's loader; others follow the same
        rules.
        norms: names of the per-layer norms, in the walk's order, where they differ.
        fused_qkv, fused_gate_up: one matrix for queries, keys and values; one for gate and up (named ffn_up).
        fused_experts: one for gates and ups of all experts (ffn_gate_up_exps).
        split_kv_b: the latent up-projection as attn_k_b and attn_v_b, for MLA caches.
        head_norms_2d: query and key norms as (head_dim, heads).
        score_bias: the router's correction vector is in the file, unless `UNCORRECTED` says otherwise.
        hashed: the first layers have a table of experts by token instead.
        bare_score_bias: it is called exp_probs_b, without a suffix.
        made_head_norms: the converter makes norms of queries and keys that hold a constant.
        embedding_norm_last: the final norm is called token_embd_norm (LFM2).
        merged_beta_alpha: one ssm_ba matrix.
        padded_vocab: (vocabulary with padding rows, without): the converter drops them.
        fixed_experts: the routed experts' type is fixed by the checkpoint.
        windowless: sliding windows are not used, caches are full.
        decompressed_latent: keys and values of MLA are cached decompressed (MiniCPM3).
        layer_norm: epsilon is written under LayerNorm's key.
        flat_rates: decay rates of Kimi's delta attention are a vector.
    """

    exact: bool = False
    norms: dict[str, str] = field(default_factory=dict)
    fused_qkv: bool = False
    fused_gate_up: bool = False
    fused_experts: bool = False
    split_kv_b: bool = False
    head_norms_2d: bool = False
    score_bias: bool = False
    hashed: bool = False
    bare_score_bias: bool = False
    made_head_norms: bool = False
    embedding_norm_last: bool = False
    merged_beta_alpha: bool = False
    padded_vocab: tuple[int, int] = (0, 0)
    fixed_experts: str = ""
    windowless: bool = False
    decompressed_latent: bool = False
    layer_norm: bool = False
    flat_rates: bool = False


_AFTER = {"attn_norm": "post_attention_norm", "ffn_norm": "post_ffw_norm"}  # norms behind, not before
_POST = {"ffn_norm": "post_attention_norm"}

LAYOUTS: dict[str, Layout] = {
    **dict.fromkeys(
        (
            "qwen2",
            "qwen3",
            "qwen3moe",
            "smollm3",
            "internlm2",
            "granite",
            "granitemoe",
            "gemma",
            "ernie4_5",
            "qwen2moe",
            "hunyuan-moe",
            "gemma2",
            "olmoe",
            "granitehybrid",
            "jamba",
            "mamba",
            "mamba2",
        ),
        Layout(exact=True),
    ),
    "llama": Layout(exact=True, windowless=True),
    "llama4": Layout(exact=True),
    "seed_oss": Layout(exact=True, norms=_POST),
    "minimax-01": Layout(exact=True),
    **dict.fromkeys(("minimax-m2", "minimax-m3"), Layout(exact=True, score_bias=True)),
    "ernie4_5-moe": Layout(exact=True, score_bias=True),
    "gemma3": Layout(exact=True, padded_vocab=(262208, 262144)),
    "phi3": Layout(exact=True, fused_qkv=True, fused_gate_up=True, windowless=True),
    "chatglm": Layout(exact=True, fused_qkv=True, fused_gate_up=True),
    "glm4": Layout(exact=True, fused_gate_up=True),
    "phi2": Layout(exact=True, layer_norm=True),
    "gptneox": Layout(exact=True, fused_qkv=True, layer_norm=True),
    "gpt2": Layout(exact=True, fused_qkv=True, layer_norm=True),
    "phimoe": Layout(exact=True),
    "starcoder2": Layout(exact=True, windowless=True, layer_norm=True),
    "stablelm": Layout(exact=True, head_norms_2d=True, layer_norm=True),
    "command-r": Layout(exact=True, head_norms_2d=True, layer_norm=True),
    "cohere2": Layout(exact=True, head_norms_2d=True, layer_norm=True),
    "olmo2": Layout(exact=True, norms=_AFTER),
    "exaone4": Layout(exact=True, norms=_AFTER),
    "gpt-oss": Layout(exact=True, norms=_POST, fixed_experts="MXFP4"),
    "deepseek2": Layout(exact=True, split_kv_b=True, score_bias=True),
    **dict.fromkeys(("deepseek32", "glm-dsa"), Layout(exact=True, split_kv_b=True, score_bias=True)),
    "deepseek4": Layout(exact=True, score_bias=True, hashed=True),
    "minicpm3": Layout(exact=True, decompressed_latent=True),
    "glm4moe": Layout(exact=True, norms=_POST, score_bias=True),
    "hy_v3": Layout(exact=True, score_bias=True, bare_score_bias=True),
    "muse-glimmer": Layout(exact=True, made_head_norms=True),
    "granite_swa": Layout(exact=True),
    "falcon-h1": Layout(exact=True, norms={"ffn_norm": "ffn_norm!"}),
    "nemotron_h_moe": Layout(exact=True, score_bias=True, norms={"ffn_norm": "attn_norm"}),
    "nemotron_h": Layout(exact=True, norms={"ffn_norm": "attn_norm"}),
    "lfm2": Layout(exact=True, embedding_norm_last=True),
    "lfm2moe": Layout(exact=True, embedding_norm_last=True, score_bias=True),
    "qwen3next": Layout(exact=True, norms=_POST, merged_beta_alpha=True),
    "qwen35": Layout(exact=True, norms=_POST),
    "qwen35moe": Layout(exact=True, norms=_POST),
    "glm5-next": Layout(exact=True, split_kv_b=True, score_bias=True, flat_rates=True),
    **dict.fromkeys(("kimi-linear", "bailingmoe3"), Layout(exact=True, split_kv_b=True, score_bias=True)),
    **dict.fromkeys(("bloom", "mpt"), Layout(exact=True, fused_qkv=True, layer_norm=True)),
    "mistral4": Layout(exact=True, split_kv_b=True, fused_experts=True),
    "dbrx": Layout(fused_qkv=True, norms={"ffn_norm": "attn_output_norm"}),
    # the rest by the same rules, not confirmed against a loader
    **dict.fromkeys(("falcon", "starcoder", "qwen"), Layout(fused_qkv=True)),
    **dict.fromkeys(("dots1", "bailingmoe2", "afmoe", "mimo2", "step35"), Layout(score_bias=True)),
    **dict.fromkeys(("gptj", "opt", "chatglm1"), Layout(layer_norm=True)),
}

UNCORRECTED = frozenset(
    {"deepseek_v2", "mistral3 (MLA MoE text)"}
)  # their routers choose by the scores alone
_NEXTN = ("eh_proj", "enorm", "hnorm", "shared_head_norm")
# Hugging Face model_type -> what the NextN layer behind the others, which loading skips, has besides a layer's tensors.
# Hy3 has one of 3.8e9 parameters (https://huggingface.co/tencent/Hy3-preview) that shares embedding and head, and so
# have Ling 3.0 (conversion/bailingmoe3.py), whose last norm has a name of its own, and GLM-5 to 5.3 (by the parameters
# that their checkpoints have beyond the other layers': 9952939776, with the biases of all routers).
DRAFT_LAYERS = {
    **dict.fromkeys(("glm4_moe", "deepseek_v32"), (*_NEXTN, "embed_tokens", "shared_head_head")),
    **dict.fromkeys(("hy_v3", "glm_moe_dsa", "glm5_next"), _NEXTN),
    "bailing_hybrid": (*_NEXTN[:3], "layer_output_norm"),
}


def of_model_type(model_type: str, mixture: bool, latent: bool) -> str:
    """llama.cpp's architecture of a Hugging Face model with routed experts or latent attention, or "" where it has
    none."""
    name = OF_MODEL_TYPE.get(model_type, "")
    if name == "nemotron_h" and mixture:
        return "nemotron_h_moe"
    if name == "llama" and latent:
        return "mistral4" if model_type == "mistral3" else ""
    return name
