"""Access to a configuration that remembers which keys were understood, so that none that changes size is
ignored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from modeldb.errors import BrokenFile, UnsupportedModel

MAX_COUNT = 1 << 40

# Keys that change behaviour or training, never the size of the model or of its cache.
HARMLESS = frozenset(
    [
        "add_cross_attention",
        "add_faster_video",
        "always_partial",
        "apply_residual_connection_post_layernorm",
        "apply_spec_augment",
        "architectures",
        "aux_loss_alpha",
        "aux_loss_free",
        "auto_map",
        "begin_suppress_tokens",
        "block_size",
        "bos_token_id",
        "chunk_size",
        "chunk_size_feed_forward",
        "classifier_proj_size",
        "compress_rope_theta",
        "cross_attention_hidden_size",
        "custom_code",
        "decoder_start_token_id",
        "dense_attention_every_n_layers",
        "dim_model_base",
        "dtype",
        "early_exit",
        "ep_size",
        "eod_token_id",
        "eoi_token_index",
        "eos_token_id",
        "exponential_decay_length_penalty",
        "floor_scale",
        "force_bos_token_to_be_added",
        "full_attn_alpha_factor",
        "full_attn_beta_factor",
        "hc_sinkhorn_iters",
        "id2label",
        "im_end_id",
        "im_start_id",
        "image_token_id",
        "image_token_index",
        "index_block_size",
        "index_local_blocks",
        "index_topk_blocks",
        "initializer_factor",
        "intermediate_act",
        "label2id",
        "layer_rope_theta",
        "layer_scale",
        "linear_attn_alpha_factor",
        "linear_attn_beta_factor",
        "logit_scale",
        "logits_scaling",
        "mamba_chunk_size",
        "mask_feature_length",
        "mask_feature_min_masks",
        "mask_time_length",
        "mask_time_min_masks",
        "max_window_layers",
        "median_filter_width",
        "mlp_alpha_factor",
        "mlp_beta_factor",
        "model_type",
        "mscale_all_dim",
        "mtp_loss_scaling_factor",
        "n_group",
        "n_groups_topk",
        "norm_topk_prob",
        "num_beams",
        "num_expert_group",
        "num_groups",
        "num_hidden_groups",
        "num_labels",
        "num_logits_to_keep",
        "num_nextn_predict_layers_used",
        "num_return_sequences",
        "oe_split_num",
        "original_max_position_embeddings",
        "pad_token_id",
        "pretraining_tp",
        "pretraining_sequence_length",
        "problem_type",
        "pruned_heads",
        "quantization",
        "quantization_config",
        "query_pre_attn_scalar",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "rotary_base",
        "rotary_emb_base",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "routed_scaling_factor",
        "scale_base_size",
        "sep_token_id",
        "seq_aux",
        "seq_length",
        "max_sequence_length",
        "slow_but_exact",
        "sliding_window_pattern_type",
        "suppress_tokens",
        "task_specific_params",
        "time_step_limit",
        "tokenizer_class",
        "topk_group",
        "topk_method",
        "torch_dtype",
        "transformers_version",
        "unsloth_version",
        "use_cache",
        "use_bfloat16",
        "use_flash_attn",
        "use_mamba_kernels",
        "video_token_id",
        "vision_end_token_id",
        "vision_start_token_id",
        "vision_token_id",
        "attn_config_initialized",
        "num_ln_in_parallel_attn_used",
        "is_hybrid_moe",
        "image_size_used",
        "init_device",
        "emb_pdrop",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "softmax_scale",
        "attn_temperature_tuning",
        "attn_scale",
        "mup_enabled",
        "rescale_layers",
        "residual_multiplier",
        "embedding_multiplier",
        "attention_multiplier",
    ]
)
HARMLESS_PATTERN = re.compile(
    r"dropout|_eps$|epsilon|token_id|token_ids|_token$|^init|initializer|pdrop|_act$|activation|loss|^_|multiplier|"
    r"^rope_|^rotary_pct|^mrope|^use_cache|^output_|^return_|^torch|^is_|^scale|scaling|time_step|residual|"
    r"^summary_|^gradient|^pretrain|label|^finetun|^bos|^eos|^pad|softcap|^norm_(?!eps)|clip|router_dtype|"
    r"^no_rope|_theta$|^attn_impl|_attn_implementation|_layernorm_type$|decay|^use_(flash|mamba|mem|assoc|logit)|"
    r"^tf_|jitter|coef$|_prob$|^prefix$|swiglu_(alpha|limit)|yarn|_lower_bound$|sinkhorn|fp32|score_func|"
    r"scoring_func|layerdrop|query_pre|qk_scale|_renormalize$|_safe_gate$|_before_gate$|kernels$|cache_dtype$|"
    r"bidirectional|^deterministic|^embd|rms_norm$(?<!mamba_rms_norm)|_pack_|^reorder|^memory_|^remote|^hub_|^license"
)
# Keys of these shapes decide sizes: one that is not understood is refused.
SIZE_PATTERN = re.compile(
    r"^num_|^n_|_dim$|_dims$|_size$|_sizes$|_rank$|_layers?$|_heads?$|expert|window|mtp|nextn|^moe|_moe|"
    r"_width$|_groups?$|_ratio$|kv_|_kernel|_state$|_inner$|lora|hidden|intermediate|vocab|ffn|mamba|ssm|conv|"
    r"block_configs|_pattern$|layer_types|_bias$|tie_|chunk|per_layer|_freq$|_interval$|_period$|_offset$|"
    r"sink|gate|_rates$|share|indexer|^index_|latent|altup|laurel|_norm$"
)


class Config:
    """One level of a configuration: `count("hidden_size", "n_embd")` reads the first of the keys that is
    there.

    `defaults` are the values of Transformers' configuration class, for keys that a saved file leaves out.
    """

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any], name: str) -> None:
        self.values, self.defaults, self.name = values, defaults, name
        self.understood: set[str] = set()

    def get(self, *keys: str, default: Any = None) -> Any:
        self.understood.update(keys)
        for source in (self.values, self.defaults):
            for key in keys:
                if source.get(key) is not None:
                    return source[key]
            if any(key in source for key in keys):
                return default  # an explicit null overrides the class's default
        return default

    def has(self, *keys: str) -> bool:
        return any(self.values.get(key) is not None for key in keys)

    def count(self, *keys: str, default: int | None = None) -> int:
        """A whole number >= 0. Raises BrokenFile naming the key when it is missing, or is something else."""
        value = self.get(*keys, default=default)
        if value is None:
            raise BrokenFile(f"{self.name}: key `{keys[0]}` is missing; it decides the size of the model")
        if isinstance(value, list) and value and all(x == value[0] for x in value):
            value = value[0]  # one number per layer, all the same
        if isinstance(value, list) and all(isinstance(x, int) for x in value):
            raise UnsupportedModel(
                f"{self.name}: `{self.key(*keys)}` differs between layers: not supported yet"
            )
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MAX_COUNT:
            raise BrokenFile(f"{self.name}: `{self.key(*keys)}` is {_short(value)}, not a count")
        return value

    def flag(self, *keys: str, default: bool = False) -> bool:
        value = self.get(*keys, default=default)
        if not isinstance(value, bool) and value not in (0, 1):
            raise BrokenFile(f"{self.name}: `{self.key(*keys)}` is {_short(value)}, not true or false")
        return bool(value)

    def text(self, *keys: str, default: str = "") -> str:
        value = self.get(*keys, default=default)
        if not isinstance(value, str):
            raise BrokenFile(f"{self.name}: `{self.key(*keys)}` is {_short(value)}, not a text")
        return value

    def items(self, *keys: str) -> list[Any]:
        """A list; [] when the key is absent."""
        value = self.get(*keys, default=[])
        if not isinstance(value, list):
            raise BrokenFile(f"{self.name}: `{self.key(*keys)}` is {_short(value)}, not a list")
        return value

    def numbers(self, *keys: str) -> list[int]:
        found = self.items(*keys)
        if not all(isinstance(x, int) and 0 <= x < MAX_COUNT for x in found):
            raise BrokenFile(f"{self.name}: `{self.key(*keys)}` is not a list of counts")
        return [int(x) for x in found]

    def section(self, key: str) -> Config:
        """A nested table; its keys are checked like those above."""
        value = self.get(key, default={})
        if not isinstance(value, dict):
            raise BrokenFile(f"{self.name}: `{key}` is {_short(value)}, not a table")
        defaults = self.defaults.get(key)
        return Config(value, defaults if isinstance(defaults, dict) else {}, f"{self.name}: {key}")

    def key(self, *keys: str) -> str:
        return next((k for k in keys if self.values.get(k) is not None), keys[0])

    def require(self, key: str, expected: Any, what: str) -> None:
        """Refuse a value other than the one whose size is known."""
        value = self.get(key, default=expected)
        if value != expected:
            raise UnsupportedModel(f"{self.name}: `{key}` is {_short(value)}: {what} is not supported yet")

    def unknown(self) -> list[str]:
        """Keys that were neither understood nor size-bearing. Raises UnsupportedModel for the
        size-bearing."""
        left = [k for k, v in self.values.items() if k not in self.understood and not _empty(v)]
        left = [k for k in left if k not in HARMLESS and not HARMLESS_PATTERN.search(k)]
        # null, false and 0 switch something off; what is off has no size
        sized = [k for k in left if SIZE_PATTERN.search(k)]
        if sized:
            raise UnsupportedModel(
                f"{self.name}: key `{_short(sized[0], quote=False)}` = {_short(self.values[sized[0]])} "
                f"may change the "
                "model's size and is not understood; please report it"
            )
        return sorted(left)


def _empty(value: Any) -> bool:
    return value is None or value is False or value == 0 or value in ("", [], {})


def _short(value: Any, quote: bool = True) -> str:
    text = repr(value) if quote else str(value)
    text = " ".join(text[:200].split())
    return text if len(text) <= 40 else text[:37] + "..."
