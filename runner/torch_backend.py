"""The same forward pass on PyTorch: CUDA, ROCm, MPS or CPU tensors. The interface is that of `runner.engine.Engine`.

Weights in 16 or 32 bits stay as they are; `dtype="float8"` rounds the layers' matrices to FP8 (E4M3, a scale per row);
quantized blocks stay packed where Triton reads them and are expanded to 16 bits elsewhere. `note` says which. Decode
runs in steps of fixed shape (`runner.torch_graph`), on CUDA and ROCm as captured graphs.
"""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from runner import hyper as hypers
from runner import rotation
from runner import torch_blocks as blocks
from runner import torch_cache as caches
from runner import torch_matrix as matrix
from runner.dequantize import dequantize
from runner.engine import Meter
from runner.errors import ContextFull, RunnerError
from runner.torch_device import default_device, open_device
from runner.torch_device import times as _times
from runner.torch_forward import Held, check, forward
from runner.torch_graph import StaticDecode
from runner.weights import Weight, Weights

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = ("float16", "bfloat16", "float32", "float8")
# matrices of a layer that FP8 checkpoints quantize: not embeddings, head, router, or the small ones of latent attention
FP8_NAMES = re.compile(
    r"^blk\.\d+\.(attn_(q|k|v|qkv|output|q_a|q_b|kv_a_mqa)|ffn_(gate|up|down)(_exps|_shexp)?)\.weight$"
)
_LATENT = re.compile(r"\.attn_[kv]_b\.weight$")
_ROUTER = re.compile(r"\.ffn_gate_inp(_shexp)?\.weight$")


class TorchEngine:
    """One sequence of a model on a PyTorch device. `prefill` and `decode` return float32 logits as NumPy arrays.

    Args:
        dtype: type of weights and activations in matrix products; "" keeps the file's types (float32 on a processor).
        cache_type: f16, bf16 or f32; "" is that of the activations.
        static: decode in steps of fixed shape; None: on CUDA and ROCm.
        packed: keep quantized blocks packed; None: where Triton kernels read them.
        kernels: use Triton; None: where it is installed and the device is CUDA or ROCm.
        own_types: keep tensors of 16 bits in their type; None: but on a processor, which is faster in float32.
    """

    n_threads = 1  # of the host

    def __init__(self, weights: Weights, n_context: int = 0, n_batch: int = 512, device: str = "", dtype: str = "",
                 cache_type: str = "", static: bool | None = None, packed: bool | None = None,
                 kernels: bool | None = None, own_types: bool | None = None) -> None:  # fmt: skip
        import torch

        if dtype and dtype not in DTYPES:
            raise RunnerError(f"no type is called `{dtype}` here; use {', '.join(DTYPES)}")
        self.torch, self.device = torch, open_device(device)
        self.weights, self.hyper = weights, hypers.read(weights.metadata, weights.name)
        h = self.hyper
        check(h, weights.name)
        self.fp8 = dtype == "float8"
        self._widens = self.device.type == "cpu" if own_types is None else not own_types
        self._forced = getattr(torch, dtype) if dtype and not self.fp8 else None
        self.dtype = self._natural()
        self.paths = matrix.paths(self.device, self.dtype, kernels)
        self._packed = self.paths.kernels if packed is None else packed
        self.n_context = n_context or min(h.max_context or 4096, 4096)
        self.n_batch, self.n_tokens = max(1, min(n_batch, self.n_context)), 0
        self.vocab_size = weights.get("token_embd.weight").rows
        kinds = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32"}
        started = time.perf_counter()
        self.cache = caches.allocate(
            h, self.n_context, self.n_batch, cache_type or kinds[self.dtype], self.device
        )
        self.held_bytes: dict[str, int] = {}  # on the device, by the tensor's name in the file
        self.formats: dict[str, str] = {}  # of matrices: `packed`, `expanded` or `own`
        angles = {w: self._angles(w) for w in {bool(v) for v in h.windows}}
        held = Held(weights.name, h, self._tensors(), self.cache, angles, self.paths)
        self.held: Held | None = held
        self.note = matrix.describe(self.formats, self.paths)
        on_gpu = self.device.type == "cuda"
        self.static = on_gpu if static is None else static
        self._decode = StaticDecode(held, self.vocab_size, self.device, on_gpu) if self.static else None
        touched, flops = self._step_counts()
        self.meter = Meter(
            load_s=time.perf_counter() - started,
            weight_bytes=sum(self.held_bytes.values()),
            n_params=sum(int(np.prod(weights.tensors[name].shape)) for name in self.held_bytes),
            cache_bytes=self.cache.allocated_bytes,
            token_weight_bytes=touched,
            token_flops=flops,
        )

    @property
    def captures(self) -> bool:
        """Whether decode replays captured graphs."""
        return self._decode is not None and self._decode.capture

    # -- loading -----------------------------------------------------------------------------------------------

    def _natural(self) -> Any:
        """The type of activations in products: as told, float32 on a processor, else that of the file's matrices."""
        torch = self.torch
        if self._forced is not None:
            return self._forced
        if self._widens:
            return torch.float32
        stored = {matrix.PLAIN.get(w.format, "") for w in self.weights.tensors.values() if len(w.shape) > 1}
        stored -= {"float32"}
        if self.fp8 or blocks.FP8 in {w.format for w in self.weights.tensors.values()}:
            return torch.bfloat16
        return getattr(torch, next(iter(stored))) if len(stored) == 1 and "" not in stored else torch.float16

    def _tensors(self) -> dict[str, Any]:
        """Everything on the device. Queries, keys and values, and gate and up, become one matrix where alike."""
        out: dict[str, Any] = {}
        for names, weight in _joined(self.weights.tensors):
            made = self._load(weight)
            out[weight.name] = made
            size = matrix.n_bytes(made)
            total = sum(self.weights.tensors[n].data.nbytes for n in names)
            for name in names:
                self.held_bytes[name] = size * self.weights.tensors[name].data.nbytes // total
        return out

    def _load(self, weight: Weight) -> Any:
        """Vectors and routers in their own type (on a processor float32); matrices as `runner.torch_matrix` does."""
        torch = self.torch
        if weight.format == blocks.FP8:
            return self._load_fp8(weight)
        if len(weight.shape) == 1 or weight.name.endswith(".bias") or _ROUTER.search(weight.name):
            plain = weight.format in matrix.PLAIN and not self._widens
            return matrix.load(weight, self.device, None if plain else torch.float32, False)
        if self.fp8 and weight.format in matrix.PLAIN and FP8_NAMES.match(weight.name):
            values = matrix.load(weight, self.device, None, False)
            n = values.shape[0] if values.dim() == 3 else 1
            codes, scale = blocks.quantize_fp8(values.reshape(-1, weight.width))
            self.formats[blocks.FP8] = "packed"
            return blocks.pack_fp8(codes, scale, weight.rows, weight.width, n, weight.name)
        keep = self._packed and not _LATENT.search(weight.name) and weight.width % 32 == 0
        plain = weight.format in matrix.PLAIN
        expand = None if plain and self._forced is None and not self._widens else self.dtype
        packed = keep and weight.format in blocks.FIELDS
        own = plain and (expand is None or matrix.PLAIN[weight.format] == str(expand).removeprefix("torch."))
        how = "packed" if packed else "own" if own else "expanded"
        if self.formats.get(weight.format) != "packed":
            self.formats[weight.format] = how
        return matrix.load(weight, self.device, expand, keep)

    def _load_fp8(self, weight: Weight) -> Any:
        """FP8 codes of a checkpoint, with their scales from the tensor of the same name and `_scale`."""
        torch = self.torch
        scale = self.weights.get(weight.name + "_scale")
        values = dequantize(scale.format, scale.data).reshape(scale.shape[::-1])
        n = int(np.prod(weight.shape[2:], dtype=np.int64))
        codes = torch.from_numpy(np.array(weight.data)).to(self.device)
        self.formats[blocks.FP8] = "packed"
        return blocks.pack_fp8(
            codes, torch.from_numpy(values).to(self.device), weight.rows, weight.width, n, weight.name
        )

    def _angles(self, windowed: bool) -> tuple[Tensor, float]:
        names = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
        tables = {
            n: dequantize(w.format, w.data) for n in names if (w := self.weights.tensors.get(n)) is not None
        }
        frequency, magnitude = rotation.frequencies(self.hyper, windowed, tables, self.n_context)
        return self.torch.from_numpy(frequency).to(self.device), magnitude

    def _step_counts(self) -> tuple[int, float]:
        """(weight bytes, matrix FLOPs) of one decode step: a row of the embedding, experts by their share."""
        h, tensors, touched, flops = self.hyper, self.weights.tensors, 0, 0.0
        for name, weight in tensors.items():
            if name not in self.held_bytes:  # scales, counted with their matrix
                continue
            size, table = self.held_bytes[name], name == "token_embd.weight"
            share = h.per_token / h.n_experts if "_exps." in name else 1.0
            tied = table and "output.weight" not in tensors
            touched += round(size * share) if not table else size // weight.rows + (size if tied else 0)
            if (
                len(weight.shape) > 1 and not name.endswith(".bias") and (not table or tied)
            ) or _ROUTER.search(name):
                flops += 2.0 * weight.width * weight.rows * int(np.prod(weight.shape[2:])) * share
        return touched, flops

    # -- the interface -----------------------------------------------------------------------------------------

    def prefill(self, tokens: list[int] | np.ndarray, all_logits: bool = False) -> np.ndarray:
        """Append tokens; logits after the last of them, or [token][vocab] of each where `all_logits`."""
        ids = np.asarray(tokens, np.int64).reshape(-1)
        self._check(ids)
        started, rows = time.perf_counter(), []
        with self.torch.inference_mode():
            for first in range(0, len(ids), self.n_batch):
                rows.append(self._batch(ids[first : first + self.n_batch], all_logits))
            found = self.torch.cat(rows) if all_logits else rows[-1][-1]
            out = found.float().cpu().numpy()
        self.meter.prefill_s.append(time.perf_counter() - started)
        self.meter.prefill_tokens.append(len(ids))
        return out

    def decode(self, token: int) -> np.ndarray:
        """Append one token; logits after it."""
        ids = np.array([token])
        self._check(ids)
        started = time.perf_counter()
        with self.torch.inference_mode():
            if self._decode is None:
                out = self._batch(ids, False)[-1]
            else:
                self._decode.put(token, self.n_tokens)
                self.n_tokens += 1
                out = self._decode.run(self.n_tokens)
            logits = out.float().cpu().numpy().copy()
        self.meter.decode_s.append(time.perf_counter() - started)
        return logits

    def greedy(self, token: int, n: int) -> list[int]:
        """Append `token` and decode `n` tokens, each the likeliest; nothing is read back until all are done."""
        self._check(np.array([token]))
        if self.n_tokens + n > self.n_context:
            raise ContextFull(self.n_tokens + n, self.n_context)
        if self._decode is None:
            raise RunnerError("greedy decoding on the device needs steps of fixed shape (static=True)")
        with self.torch.inference_mode():
            found = self.torch.empty(n, dtype=self.torch.int64, device=self.device)
            self._decode.put(token, self.n_tokens)
            for i in range(n):
                self.n_tokens += 1
                self._decode.run(self.n_tokens)
                found[i : i + 1].copy_(self._decode.token)
            return [int(t) for t in found.cpu()]

    def decode_times(self, token: int, n: int) -> list[float]:
        """Seconds of each of `n` steps after `token`, each fed the likeliest token of the one before, on the device's
        clock. Steps of fixed shape run without the host; others return their logits to it."""
        if self._decode is None:
            state = [token]

            def step() -> None:
                state[0] = int(np.argmax(self.decode(state[0])))

            return _times(self.device, step, n)
        self._check(np.full(n, token))
        decode = self._decode
        with self.torch.inference_mode():
            decode.put(token, self.n_tokens)
            for ahead in range(1, n + 1):  # what is captured here is not timed
                decode.prepare(self.n_tokens + ahead)

            def replay() -> None:
                self.n_tokens += 1
                decode.run(self.n_tokens)

            return _times(self.device, replay, n)

    def rewind(self, n_tokens: int) -> None:
        """Forget all but the first `n_tokens` tokens. Windowed layers must still hold what those need."""
        if not 0 <= n_tokens <= self.n_tokens:
            raise ValueError(f"cannot rewind from {self.n_tokens} tokens to {n_tokens}")
        self.n_tokens = n_tokens

    def close(self) -> None:
        """Let go of the device's memory."""
        self.held = self._decode = None
        self.cache = replace(self.cache, layers=())

    def _batch(self, ids: np.ndarray, all_logits: bool) -> Tensor:
        torch, start, held = self.torch, self.n_tokens, self.held
        assert held is not None
        on_device = torch.from_numpy(ids).to(self.device)
        positions = torch.arange(start, start + len(ids), device=self.device)
        out = forward(held, on_device, positions, start + len(ids), all_logits, first=start == 0)
        self.n_tokens += len(ids)
        return out

    def _check(self, ids: np.ndarray) -> None:
        if len(ids) == 0:
            raise ValueError("no tokens")
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise ValueError(f"a token is outside the vocabulary of {self.vocab_size}")
        if self.n_tokens + len(ids) > self.n_context:
            raise ContextFull(self.n_tokens + len(ids), self.n_context)


def _joined(tensors: dict[str, Weight]) -> list[tuple[tuple[str, ...], Weight]]:
    """(names in the file, weight to load): matrices that read the same activations, of one format and width, are one
    matrix with their rows in order, and so are their biases; gate stands before up."""
    out, done = [], set()
    for name, weight in tensors.items():
        group = next((g for g in (_group(name, tensors),) if g), ())
        if name in done or (name.endswith("_scale") and name.removesuffix("_scale") in tensors):
            continue
        if group and name == group[1][0]:
            target, parts = group
            held = [tensors[p] for p in parts]
            rows = sum(w.rows if len(w.shape) > 1 else w.shape[0] for w in held)
            shape = (weight.width, rows) if len(weight.shape) > 1 else (rows,)
            out.append((parts, Weight(target, weight.format, shape, np.concatenate([w.data for w in held]))))
            done |= set(parts)
        elif not group:
            out.append(((name,), weight))
    return out


_PART = re.compile(r"^(blk\.\d+\.)(?:attn_([qkv])|ffn_(gate|up))\.(weight|bias)$")


def _group(name: str, tensors: dict[str, Weight]) -> tuple[str, tuple[str, ...]] | None:
    """(fused name, its parts in order) where `name` is one of parts that can be joined."""
    match = _PART.match(name)
    if match is None:
        return None
    prefix, attention, _, kind = match.groups()
    stems = ("attn_q", "attn_k", "attn_v") if attention else ("ffn_gate", "ffn_up")
    matrices = [w for s in stems if (w := tensors.get(f"{prefix}{s}.weight")) is not None]
    biases = [w for s in stems if (w := tensors.get(f"{prefix}{s}.bias")) is not None]
    if len(matrices) < len(stems) or prefix + "attn_q_a.weight" in tensors:
        return None
    if len({(w.format, w.width) for w in matrices}) > 1 or matrices[0].format == blocks.FP8:
        return None
    if biases and (not attention or len(biases) < len(stems) or len({b.format for b in biases}) > 1):
        return None
    fused = "attn_qkv" if attention else "ffn_up"
    return f"{prefix}{fused}.{kind}", tuple(f"{prefix}{s}.{kind}" for s in stems)


__all__ = ["DTYPES", "TorchEngine", "default_device"]
