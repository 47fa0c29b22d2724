"""The tensors of a model as the runner holds them: double layers as two, latent up-projections as GGUF files split
them, drafts left out."""

from __future__ import annotations

from collections.abc import Iterator

from modeldb.errors import UnsupportedModel
from modeldb.model import Model
from modeldb.scheme import Scheme
from modeldb.tensor import Tensor
from runner import float8
from runner.dequantize import STORED

PLAIN = ("F32", "F16", "BF16")


def held(model: Model, scheme: Scheme, fp8: bool = False) -> list[tuple[Tensor, str]]:
    """Each tensor with its format. `fp8`: whoever asks can run FP8 (see `runner.checkpoint`). Raises UnsupportedModel
    for a format that the runner has no kernel for."""
    from modeldb.schemes import assign
    from modeldb.sublayers import split

    model = split(model)
    found = []
    for t, fmt in assign(scheme, model):
        if t.role == "draft":
            continue
        if fmt.id not in STORED and not (fp8 and fmt.id in float8.SCALED):
            elsewhere = "; on PyTorch (--device) it has one" if fmt.id in float8.SCALED else ""
            raise UnsupportedModel(
                f"{model.id} as {scheme.id}: the runner has no kernel for {fmt.id} (`{t.name}`){elsewhere}"
            )
        found += [(part, fmt.id) for part in _parts(t, fmt.id, model, scheme)]
    return found


def _parts(t: Tensor, format_id: str, model: Model, scheme: Scheme) -> Iterator[Tensor]:
    """The tensor, or the two that a latent up-projection is."""
    from modeldb import gguf_layout
    from modeldb.architectures import LAYOUTS, Layout

    dialect = LAYOUTS.get(gguf_layout.graph(model), Layout())
    if dialect.decompressed_latent or not t.name.endswith(".attn_kv_b.weight"):
        yield t
    elif format_id in PLAIN:
        yield from gguf_layout.split_kv_b(t, t.name.removesuffix("attn_kv_b.weight"), model)
    else:
        raise UnsupportedModel(
            f"{model.id} as {scheme.id}: the runner splits `{t.name}`, which it can in 16 bits (BF16, Q8_0 ...)"
        )
