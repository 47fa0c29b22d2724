"""What an architecture fixes and its files do not say."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Style:
    """The part of a graph that neither metadata nor the names of tensors tell.

    Attributes:
        halves: rotary pairs are (i, i + n/2) rather than neighbours.
        activation: `silu`, `gelu_tanh`, `relu`, `relu_squared`, `swiglu_oai` or `xielu`.
        scaled_embedding: embeddings are multiplied by sqrt(hidden size).
        window_period: every n-th layer sees everything, the others a window; 0: the window is not used.
        usual_window: tokens of the window where the file does not say.
        chunked: a windowed layer sees its chunk of `window` tokens, rather than the last ones.
        local_base: windowed layers rotate without scaling, with this base (0: that of the others) unless the file
            says; None: as the others do.
        still_every: every n-th layer does not rotate; 0: all do.
        prefixed: all tokens of a prompt but the last see each other, and a token's position is in two planes, by
            which halves of heads rotate: its place in the prompt, and how far behind it.
        carries: what goes on beside mixer and feed-forward is what they read, the normed input, by the residual factor.
        shortcut: what experts give is added behind the next layer.
        scaled_latents: latents are multiplied by the root of the hidden size over their width.
        spare_words: embeddings of tokens that are never predicted (Llama 3.2 Vision's image).
        first_position: the first token's row of a table of learned positions.
        alibi: the largest bias that distance gives scores (ALiBi); None: as the file says.
        turns_near: where there are windows, layers that see everything do not rotate.
        turns_first: heads are rotated before they are normed.
        half_turned: layers that see everything rotate half of what those with a window do.
        norm: `rms`, `layer` (LayerNorm) or `bare` (LayerNorm without weights).
        norms_behind: mixer and feed-forward read what was not normed; their outputs are.
        parallel: mixer and feed-forward read the same: `always`, `unnormed` (in layers without a norm before the
            feed-forward), `stated` (where the file says so) or empty.
        router: how expert scores become weights (`runner.kernel_router`).
        normalize: expert weights are divided by their sum.
        weighs_first: experts' inputs are weighted, not their outputs.
        limits_gates: bounds of gated units are those of gates before their activation, not behind it.
        recurrent: what layers without attention are (`mamba`, `mamba2`, `delta`, `kda`, `lightning`, `short_conv`);
            empty: all attend.
        full_gates: Kimi's decays and gates are projected by full matrices, decays are bounded.
        rotates: heads are rotated; None: unless the file's rope.scaling.finetuned says no.
        shared_keys: neighbouring value heads share a key head of the delta rule, rather than distant ones.
        unit_eps: epsilon of the lengths of the delta rule's keys and queries; 0: that of norms.
        gaps: layers may have no mixer.
        norms_words: embeddings are normed, without weights.
        eps_behind: epsilon of norms behind mixer and feed-forward; 0: that of the others.
        norms_values: values are normed, without weights; a layer without values has its keys for them.
        index_halves: rotary pairs of the indexer's heads, as `halves`.
        scaled: embedding, residual and logit factors: `all`: those of the file; `logits`: the logits', and as a factor;
            `minicpm3`: its own; `residual`: the residual's; `depth`: that is the root of twice the number of layers.
    """

    halves: bool = True
    activation: str = "silu"
    scaled_embedding: bool = False
    window_period: int = 0
    usual_window: int = 0
    chunked: bool = False
    local_base: float | None = None
    still_every: int = 0
    prefixed: bool = False
    carries: bool = False
    shortcut: bool = False
    scaled_latents: bool = False
    spare_words: int = 0
    first_position: int = 0
    alibi: float | None = 0.0
    turns_near: bool = False
    turns_first: bool = False
    half_turned: bool = False
    norm: str = "rms"
    norms_behind: bool = False
    parallel: str = ""
    router: str = "softmax"
    normalize: bool = True
    weighs_first: bool = False
    limits_gates: bool = False
    recurrent: str = ""
    full_gates: bool = False
    rotates: bool | None = True
    shared_keys: bool = False
    unit_eps: float = 0.0
    gaps: bool = False
    norms_words: bool = False
    eps_behind: float = 0.0
    norms_values: bool = False
    index_halves: bool = True
    scaled: str = ""


_GEMMA = Style(activation="gelu_tanh", scaled_embedding=True)
_GRANITE = Style(halves=False, rotates=None, scaled="all")
_COHERE = Style(halves=False, norm="layer", parallel="always", scaled="logits")
_DEEPSEEK = Style(halves=False, normalize=False)
_GPT = Style(activation="gelu_tanh", norm="layer")

# https://github.com/ggml-org/llama.cpp/tree/master/src/models holds the graphs these follow.
STYLES: dict[str, Style] = {
    "llama": Style(halves=False),
    "mistral3": Style(halves=False),
    "qwen2": Style(),
    "qwen3": Style(),
    "qwen2moe": Style(normalize=False),
    "qwen3moe": Style(),
    "gemma": _GEMMA,
    "gemma2": replace(_GEMMA, window_period=2, usual_window=4096),
    "gemma3": replace(_GEMMA, window_period=6, local_base=10000.0),
    "gemma3n": replace(_GEMMA, window_period=5, local_base=10000.0, norms_values=True),
    "gemma4": replace(_GEMMA, window_period=6, local_base=10000.0, norms_values=True),
    "phi3": Style(),
    "deci": Style(halves=False, gaps=True),
    "mimo2": Style(local_base=10000.0, window_period=6, router="sigmoid"),
    "step35": Style(local_base=10000.0, half_turned=True, router="sigmoid", normalize=False),
    "gpt-oss": Style(activation="swiglu_oai", window_period=2, router="softmax_of_chosen"),
    "deepseek2": _DEEPSEEK,
    "deepseek32": _DEEPSEEK,
    "deepseek4": Style(halves=False, local_base=0.0, router="sqrt_softplus", limits_gates=True, index_halves=False),
    "glm-dsa": replace(_DEEPSEEK, router="sigmoid", index_halves=False),
    "mistral4": _DEEPSEEK,
    "minicpm3": Style(scaled="minicpm3"),
    "granite": _GRANITE,
    "granitemoe": _GRANITE,
    "falcon-h1": Style(recurrent="mamba2"),
    "granitehybrid": replace(_GRANITE, recurrent="mamba2"),
    "nemotron_h": Style(activation="relu_squared", recurrent="mamba2", rotates=False),
    "nemotron_h_moe": Style(
        activation="relu_squared", recurrent="mamba2", rotates=False, router="sigmoid", normalize=False
    ),
    "lfm2": Style(recurrent="short_conv"),
    "lfm2moe": Style(recurrent="short_conv"),
    "qwen3next": Style(recurrent="delta", shared_keys=True),
    "qwen35": Style(recurrent="delta"),
    "qwen35moe": Style(recurrent="delta"),
    "mamba": Style(recurrent="mamba", rotates=False),
    "mamba2": Style(recurrent="mamba2", rotates=False),
    "jamba": Style(recurrent="mamba", rotates=False, normalize=False),
    "kimi-linear": Style(recurrent="kda", still_every=1),
    "bailingmoe3": Style(halves=False, recurrent="kda", full_gates=True, normalize=False),
    "glm5-next": Style(recurrent="kda", rotates=False, router="sigmoid", limits_gates=True, unit_eps=1e-6),
    # RMSNorm before each branch, gated feed-forwards
    "qwen": Style(),
    "qwen2vl": Style(),
    "qwen3vl": Style(),
    "qwen3vlmoe": Style(),
    "seed_oss": Style(),
    "exaone": Style(),
    "internlm2": Style(halves=False),
    "chatglm": Style(halves=False),
    "glm4": Style(halves=False),
    "ernie4_5": Style(halves=False),
    "arcee": Style(halves=False, activation="relu_squared"),
    "bitnet": Style(),
    "apertus": Style(activation="xielu"),
    "smollm3": Style(halves=False, still_every=4),
    "hunyuan-dense": Style(turns_first=True),
    "exaone4": Style(norms_behind=True, window_period=4, turns_near=True),
    "olmo2": Style(norms_behind=True, window_period=4, local_base=0.0),
    "phimoe": Style(),
    "olmoe": Style(normalize=False),
    "glm4moe": Style(router="sigmoid", normalize=False),
    "dots1": Style(normalize=False),
    "bailingmoe2": Style(normalize=False),
    "ernie4_5-moe": Style(halves=False),
    "hunyuan-moe": Style(turns_first=True),
    "minimax-01": Style(recurrent="lightning", scaled="residual", carries=True),
    "minimax-m2": Style(),
    "minimax-m3": Style(activation="swiglu_oai", normalize=False),
    "hy_v3": Style(router="sigmoid", normalize=False),
    "granite_swa": replace(_GRANITE, rotates=True),
    "muse-glimmer": Style(
        halves=False, window_period=4, turns_near=True, norms_words=True, eps_behind=1e-8, scaled="logits"
    ),
    "afmoe": Style(scaled_embedding=True, window_period=4, still_every=4, router="sigmoid", normalize=False),
    "llama4": Style(
        halves=False, window_period=4, usual_window=8192, chunked=True, still_every=4, turns_first=True,
        router="sigmoid", normalize=False, weighs_first=True,
    ),
    # LayerNorm
    "command-r": _COHERE,
    "cohere2": replace(_COHERE, window_period=4, turns_near=True),
    "stablelm": Style(norm="layer", parallel="unnormed"),
    "olmo": Style(halves=False, norm="bare"),
    "dbrx": Style(norm="layer"),
    "falcon": replace(_GPT, parallel="always"),
    "gptneox": replace(_GPT, parallel="stated"),
    "phi2": replace(_GPT, parallel="always"),
    "starcoder2": _GPT,
    "starcoder": replace(_GPT, rotates=False),
    "gpt2": replace(_GPT, rotates=False),
    "bloom": replace(_GPT, rotates=False, alibi=8.0),
    "mpt": replace(_GPT, rotates=False, alibi=None),
    "gptj": replace(_GPT, halves=False, parallel="always"),
    # what llama.cpp has no architecture for, after the modeling files of Hugging Face's Transformers
    "opt": replace(_GPT, activation="relu", rotates=False, first_position=2),
    "mllama": Style(spare_words=8),
    # modeling_chatglm.py of https://huggingface.co/zai-org/chatglm-6b
    "chatglm1": replace(_GPT, prefixed=True, scaled="depth", carries=True),
    "longcat-flash": Style(halves=False, normalize=False, shortcut=True, scaled_latents=True),
}  # fmt: skip
