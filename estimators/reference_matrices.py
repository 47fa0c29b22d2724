"""The matrices that the bundled runner multiplies with, and the rates of its kernels for their formats."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from estimators.deployment import Deployment
from hwdb.device import KernelRates
from modeldb.sublayers import split
from modeldb.walk import idle_layers, is_idle

LAYER_TABLE = "per_layer_token_embd.weight"  # only looked up
HEADS = ("output.weight", "token_embd.weight")
ALIKE = {  # formats with kernels of the same make
    "F32": ("BF16", "F16"), "BF16": ("F16",), "F16": ("BF16",), "Q4_1": ("Q4_0",), "Q5_1": ("Q5_0",),
    "Q5_0": ("Q4_0",), "IQ4_NL": ("MXFP4", "Q4_0"), "IQ4_XS": ("MXFP4", "Q4_K"), "MXFP4": ("Q4_0",),
    "Q2_K": ("Q6_K", "Q4_K"), "Q3_K": ("Q6_K", "Q4_K"), "Q5_K": ("Q4_K",), "Q6_K": ("Q4_K",), "Q4_K": ("Q4_0",),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix (or a layer's experts) as stored, and what its kernels reach: bytes per second for one token, FLOP/s
    for many; `like` is the format that was timed. `last`: of the last layer's feed-forward or the head, which a prompt
    multiplies with its last token only."""

    name: str
    n_bytes: int
    count: int
    like: str
    stream: float
    product: float
    last: bool

    @property
    def experts(self) -> bool:
        return "_exps." in self.name


def matrices(d: Deployment, own: KernelRates) -> Iterator[Matrix]:
    """All of them; a tied embedding is the head."""
    from modeldb.schemes import assign

    speed = {name: (stream, product) for name, stream, product in own.formats}
    model, idle = split(d.model), idle_layers(d.model)
    pairs = [(t, f) for t, f in assign(d.scheme, model)
             if t.role != "draft" and not is_idle(t, idle) and len(t.shape) > 1 and t.name != LAYER_TABLE]  # fmt: skip
    tied = all(t.name != "output.weight" for t, _ in pairs)
    final = tuple(f"blk.{model.n_layers - 1}.{part}" for part in ("ffn_", "inp_gate", "proj"))
    for t, f in pairs:
        if t.name == "token_embd.weight" and not tied:
            continue
        like = most_alike(f.id, speed)
        last = t.name in HEADS or t.name.startswith(final)
        yield Matrix(t.name, f.n_bytes(t.shape), t.n_elements, like, *speed[like], last)


def most_alike(fmt: str, held: Collection[str]) -> str:
    """Of the formats in `held`, the one whose kernel is most alike."""
    for name in (fmt, *ALIKE.get(fmt, ()), "Q8_0"):
        if name in held:
            return name
    return next(iter(held))
