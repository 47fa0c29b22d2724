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


MODELS: dict[str, Callable[[Tensors], tuple[Any, Tensors]]] = {"opt": opt, "mllama": mllama}


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
