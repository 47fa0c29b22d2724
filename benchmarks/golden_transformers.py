"""Compute tests/data/runner/golden_transformers.npz: logits and greedy continuations of the tests' tiny files whose
architectures llama.cpp does not have, by Hugging Face's Transformers in float32.

    python benchmarks/golden_transformers.py
        (in an environment with torch, transformers, gguf and numpy; 5.23.0 made the file)

The files are written by tests/runner_tiny.py, seeded, and their tensors put under Transformers' names.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import runner_tiny  # noqa: E402
import tiny_alone  # noqa: E402
import tiny_mla as mla  # noqa: E402
import tiny_parts as tiny  # noqa: E402

N_GREEDY, KEPT = 64, 4
Tensors = dict[str, np.ndarray]
OUTER = {
    "token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}  # fmt: skip
GATED = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_output": "self_attn.o_proj",
    **{f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"},
    **{f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
}  # fmt: skip


def tensors_of(path: Path) -> Tensors:
    """The file's tensors in float32, outputs first."""
    import gguf

    reader = gguf.GGUFReader(path)
    return {t.name: gguf.dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors}


def _renamed(tensors: Tensors, stems: dict[str, str], outer: dict[str, str], layers: str) -> Tensors:
    """Under the names of the checkpoint: `outer` ones in full, those of layers by their stems behind `layers`."""
    found = {}
    for name, values in tensors.items():
        if name in outer:
            found[outer[name]] = values
            continue
        _, number, rest = name.split(".", 2)
        stem, _, kind = rest.rpartition(".")
        found[f"{layers}{number}.{stems[stem]}.{kind}"] = values
    return found


def opt(tensors: Tensors) -> tuple[Any, Tensors]:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=tiny.VOCAB, hidden_size=tiny.HIDDEN, num_hidden_layers=tiny.LAYERS, ffn_dim=tiny.INNER,
        num_attention_heads=tiny.HEADS, max_position_embeddings=tiny.CONTEXT, tie_word_embeddings=False,
        word_embed_proj_dim=tiny.HIDDEN, dropout=0.0,
    )  # fmt: skip
    stems = {
        "attn_norm": "self_attn_layer_norm", "ffn_norm": "final_layer_norm", "ffn_up": "fc1", "ffn_down": "fc2",
        "attn_output": "self_attn.out_proj", **{f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"},
    }  # fmt: skip
    outer = {
        "token_embd.weight": "model.decoder.embed_tokens.weight", "output.weight": "lm_head.weight",
        "position_embd.weight": "model.decoder.embed_positions.weight",
        **{f"output_norm.{x}": f"model.decoder.final_layer_norm.{x}" for x in ("weight", "bias")},
    }  # fmt: skip
    return OPTForCausalLM(config), _renamed(tensors, stems, outer, "model.decoder.layers.")


def mllama(tensors: Tensors) -> tuple[Any, Tensors]:
    from transformers.models.mllama import MllamaForCausalLM, MllamaTextConfig

    spare, cross = tiny_alone.SPARE_WORDS, tiny_alone.CROSS_LAYER
    config = MllamaTextConfig(
        vocab_size=tiny.VOCAB - spare, hidden_size=tiny.HIDDEN, num_hidden_layers=tiny.LAYERS,
        intermediate_size=tiny.INNER, num_attention_heads=tiny.HEADS, num_key_value_heads=tiny.KV_HEADS,
        max_position_embeddings=tiny.CONTEXT, cross_attention_layers=[cross], rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, tie_word_embeddings=False, pad_token_id=0,
    )  # fmt: skip
    gates = tensors.pop(f"blk.{cross}.cross_attn_gate")
    stems = GATED | {f"cross_attn_{x}": f"cross_attn.{x}_proj" for x in "qkv"}
    stems |= {f"cross_attn_{x}_norm": f"cross_attn.{x}_norm" for x in "qk"} | {
        "cross_attn_output": "cross_attn.o_proj"
    }
    found = _renamed(tensors, stems, OUTER, "model.layers.")
    found |= {
        f"model.layers.{cross}.cross_attn_{x}_gate": gates[i : i + 1] for i, x in enumerate(("attn", "mlp"))
    }
    return MllamaForCausalLM(config), found


def longcat(tensors: Tensors) -> tuple[Any, Tensors]:
    from transformers import LongcatFlashConfig, LongcatFlashForCausalLM

    own = tiny_alone
    config = LongcatFlashConfig(
        vocab_size=tiny.VOCAB, hidden_size=tiny.HIDDEN, num_layers=own.DOUBLE_LAYERS, num_attention_heads=tiny.HEADS,
        ffn_hidden_size=tiny.INNER, q_lora_rank=mla.LOW, kv_lora_rank=mla.RANK, qk_nope_head_dim=mla.NOPE,
        qk_rope_head_dim=mla.ROTARY, head_dim=mla.ROTARY, v_head_dim=mla.VALUE, moe_topk=own.PER_TOKEN,
        n_routed_experts=own.N_EXPERTS, zero_expert_num=own.N_ZERO, expert_ffn_hidden_size=own.EXPERT_INNER,
        routed_scaling_factor=6.0, rms_norm_eps=1e-5, max_position_embeddings=tiny.CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    model = LongcatFlashForCausalLM(config)
    found = {OUTER[name]: tensors.pop(name) for name in OUTER}
    for i in range(2 * own.DOUBLE_LAYERS):
        t = {name.split(".", 2)[2]: v for name, v in tensors.items() if name.startswith(f"blk.{i}.")}
        p, at = f"model.layers.{i // 2}.", i % 2
        found |= _longcat_half(t, p, at)
        if at == 0:
            gate_up = np.concatenate([t["ffn_gate_exps.weight"], t["ffn_up_exps.weight"]], axis=1)
            nothing = np.zeros((own.N_ZERO, *gate_up.shape[1:]), np.float32)
            found |= {
                p + "mlp.router.classifier.weight": t["ffn_gate_inp.weight"],
                p + "mlp.router.e_score_correction_bias": t["exp_probs_b.bias"],
                p + "mlp.experts.gate_up_proj": np.concatenate([gate_up, nothing]),
                p + "mlp.experts.down_proj": t["ffn_down_exps.weight"],
            }
    return model, found


def _longcat_half(t: Tensors, p: str, at: int) -> Tensors:
    """Attention, feed-forward and norms of half a double layer."""
    k_b, v_b = t["attn_k_b.weight"], t["attn_v_b.weight"]  # [head][rank][nope], [head][value][rank]
    kv_b = np.concatenate([k_b.transpose(0, 2, 1), v_b], axis=1).reshape(-1, mla.RANK)
    stems = {"q_a_proj": "q_a", "q_a_layernorm": "q_a_norm", "q_b_proj": "q_b", "kv_a_proj_with_mqa": "kv_a_mqa",
             "kv_a_layernorm": "kv_a_norm", "o_proj": "output"}  # fmt: skip
    return {
        f"{p}input_layernorm.{at}.weight": t["attn_norm.weight"],
        f"{p}post_attention_layernorm.{at}.weight": t["ffn_norm.weight"],
        f"{p}self_attn.{at}.kv_b_proj.weight": kv_b,
        **{f"{p}self_attn.{at}.{x}.weight": t[f"attn_{y}.weight"] for x, y in stems.items()},
        **{f"{p}mlps.{at}.{x}_proj.weight": t[f"ffn_{x}.weight"] for x in ("gate", "up", "down")},
    }


MODELS: dict[str, Callable[[Tensors], tuple[Any, Tensors]]] = {
    "opt": opt,
    "mllama": mllama,
    "longcat": longcat,
}


def logits_of(path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Transformers' logits of the prompt, and its greedy continuation."""
    import torch

    model, state = MODELS[name](tensors_of(path))
    missing, unexpected = model.load_state_dict({k: torch.tensor(v) for k, v in state.items()}, strict=False)
    if missing or unexpected:
        raise SystemExit(f"{name}: missing {missing}, unexpected {unexpected}")
    model.float().eval()
    tokens = torch.tensor([runner_tiny.prompt()])
    n = tokens.shape[1]
    with torch.no_grad():
        for _ in range(N_GREEDY):
            every = model(tokens, use_cache=False).logits[0]
            tokens = torch.cat([tokens, every[-1].argmax()[None, None]], dim=1)
    return every[:n].numpy(), tokens[0, n:].numpy()


def main() -> None:
    kept: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in (n for n in tiny_alone.ALONE if n in MODELS):
            for kind in ("F16", "Q8_0"):
                path = runner_tiny.write(Path(folder) / "model.gguf", name, kind)
                logits, greedy = logits_of(path, name)
                kept |= {f"{name}/{kind}/logits": logits[-KEPT:], f"{name}/{kind}/greedy": greedy}
                distinct = len(set(greedy.tolist()))
                print(
                    f"{name:10s} {kind:5s} spread {logits.std():.2f}  {distinct} distinct tokens", flush=True
                )
    np.savez_compressed(ROOT / "tests/data/runner/golden_transformers.npz", **kept)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
