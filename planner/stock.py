"""What may answer: models that suit the task and the wishes, each in the schemes people use, as one table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from estimators.walk import Walk
from modeldb.model import Model
from modeldb.scheme import Scheme
from planner.errors import UsageError
from planner.request import Request

#: The schemes worth offering, per container, most bits first; others only on request (`--quant`).
USUAL: dict[str, tuple[str, ...]] = {
    "gguf": ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K", "MXFP4_MOE"),
    "safetensors": (
        "bf16",
        "fp8-block128x128",
        "fp8-per-tensor",
        "awq-4bit-g128",
        "gptq-4bit-g128",
        "mxfp4-hf",
    ),
    "mlx": ("mlx-8bit-g64", "mlx-6bit-g64", "mlx-4bit-g64"),
}

#: What is offered of a model that was published in MXFP4: the rest of it is not worth requantizing.
FOUR_BIT = frozenset({"MXFP4_MOE", "mxfp4-hf", "mlx-4bit-g64"})

EXPERTS_ONLY = frozenset({"MXFP4_MOE", "mxfp4-hf"})  # and what is only offered of such a model

PERMISSIVE = frozenset(
    {"apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause", "cc-by-4.0", "openmdw-1.1", "modified-mit"}
)

#: Fine-tunes that exist to remove refusals never represent a model unless named.
ODD = re.compile(r"abliterat|uncensored|heretic|nsfw|role-?play", re.IGNORECASE)


@dataclass(frozen=True)
class Stock:
    """Pairs of a model and a scheme with their walks. `model` indexes `models`, `scheme` indexes
    `schemes`."""

    models: tuple[Model, ...]
    schemes: tuple[Scheme, ...]
    model: NDArray[np.int64]
    scheme: NDArray[np.int64]
    walk: Walk
    left_out: tuple[tuple[str, int], ...] = ()  # (reason, number of models)

    def take(self, rows: NDArray[np.int64]) -> Stock:
        return Stock(
            self.models,
            self.schemes,
            self.model[rows],
            self.scheme[rows],
            self.walk.take(rows),
            self.left_out,
        )

    def __len__(self) -> int:
        return len(self.model)


def build(request: Request) -> Stock:
    """All pairs that may answer the request, whatever the machine. Errors: UnknownModel, UnknownScheme."""
    from modeldb import schemes

    named = tuple(schemes.get(name) for name in request.quants)
    own, files = _models(request)
    left: Counter[str] = Counter()
    kept = [m for m in own if not (reason := _unsuited(m, request)) or left.update([reason])]
    wanted = [s.id for s in named] or [name for names in USUAL.values() for name in names]
    stock = _from_table(tuple(kept), wanted, bool(named))
    for model, scheme in files:
        stored = scheme.id == "file"
        if stored and named:
            check_stored(model.source, scheme, named)
        stock = _append(stock, model, [scheme] if stored or not named else list(named))
    if request.max_parameters is not None:
        small = stock.take(np.flatnonzero(stock.walk.total_params <= request.max_parameters))
        large = set(stock.model.tolist()) - set(small.model.tolist())
        left["larger than --max-size"] += len(large)
        stock = _without(small, large)
    return Stock(
        stock.models, stock.schemes, stock.model, stock.scheme, stock.walk, tuple(sorted(left.items()))
    )


def _models(request: Request) -> tuple[list[Model], list[tuple[Model, Scheme]]]:
    """Catalogue models and (model, scheme) of files that the request allows."""
    from modeldb import catalogue

    known = catalogue.load()
    if not request.models:
        return [m for m in known.models if not ODD.search(m.id)], []
    own, files = [], []
    for name in request.models:
        found = resolve(name)
        if found[1] is None:
            own.append(found[0])
        else:
            files.append((found[0], found[1]))
    return own, files


def resolve(name: str) -> tuple[Model, Scheme | None]:
    """A catalogue model and None, or a file's model with its scheme. Errors of modeldb pass through."""
    from modeldb import catalogue, readers
    from modeldb.errors import UnknownModel

    if not means_path(name):
        try:
            return catalogue.load().resolve(name), None
        except UnknownModel:
            if not readers.looks_like_repository(name):
                raise
    model, scheme = readers.read(name)
    return _recognized(replace(model, source=name)), scheme


def check_stored(name: str, stored: Scheme, wanted: Sequence[Scheme]) -> None:
    """Raises UsageError where a file that holds its weights is wanted in another scheme than they are in."""
    if stored.label not in {scheme.id for scheme in wanted}:
        names = " or ".join(scheme.id for scheme in wanted)
        raise UsageError(
            f"`{name}` holds its weights in {stored.label or 'a mix of its own'}, not in {names}",
            "leave the quantization out",
        )


def means_path(name: str) -> bool:
    """Whether a file or folder is meant: by the form of the name, or because one is here and no model is called so."""
    from modeldb import catalogue, readers
    from modeldb.errors import ModelError

    if readers.looks_like_path(name) or not name.strip() or not readers.exists(Path(name)):
        return readers.looks_like_path(name)
    try:
        catalogue.load().resolve(name)
    except ModelError:
        return True
    return False


def _recognized(model: Model) -> Model:
    """A file's model with what the catalogue knows of the model it says it is, where name and shape agree."""
    from modeldb import catalogue
    from modeldb.errors import ModelError

    for name in (model.hf_id, model.name):
        try:
            twin = catalogue.load().resolve(name)
        except ModelError:
            continue
        shape = (twin.hidden_size, twin.n_layers, twin.vocab_size)
        if shape == (model.hidden_size, model.n_layers, model.vocab_size):
            return replace(
                model, base=twin.id, family=twin.family, licence=twin.licence, release_date=twin.release_date,
                evidence=twin.evidence,
            )  # fmt: skip
    return model


def _unsuited(model: Model, request: Request) -> str:
    """Why a catalogue model cannot answer, or ""."""
    if not suits(model, request.task.modalities):
        return "for other kinds of input or output"
    if request.models:
        return ""
    if request.licences and not licensed(model, request.licences):
        return "licence"
    if model.max_context is not None and model.max_context < request.context:
        return "context shorter than asked"
    return ""


def suits(model: Model, modalities: tuple[str, ...]) -> bool:
    """True when the model takes what the task gives: text by default, else what `modalities` say."""
    if not modalities:
        return model.modality.startswith("text")
    return any(word in model.modality for word in modalities)


def licensed(model: Model, allowed: tuple[str, ...]) -> bool:
    """True when the model's licence is among `allowed`, where `permissive` stands for those without
    conditions of use."""
    licence = model.licence.lower()
    return licence in allowed or ("permissive" in allowed and licence in PERMISSIVE) or "any" in allowed


def _from_table(models: tuple[Model, ...], wanted: list[str], compute: bool) -> Stock:
    """Pairs found in the compiled walks; with `compute`, those that are missing are walked now."""
    from estimators.walk import load_table
    from modeldb import schemes

    table = load_table()
    known = {name: schemes.get(name) for name in dict.fromkeys(wanted)}
    order = {name: i for i, name in enumerate(known)}
    rows, model_index, scheme_index = [], [], []
    for i, model in enumerate(models):
        four_bit = "mxfp4" in model.native_dtype
        for name, j in order.items():
            if not compute and (name not in FOUR_BIT if four_bit else name in EXPERTS_ONLY):
                continue
            row = table.position.get((model.id, name))
            if row is not None:
                rows.append(row)
                model_index.append(i)
                scheme_index.append(j)
    stock = Stock(
        models,
        tuple(known.values()),
        np.array(model_index, dtype=np.int64),
        np.array(scheme_index, dtype=np.int64),
        table.take(np.array(rows, dtype=np.int64)),
    )
    if compute and len(models) <= 8:
        present = set(zip(model_index, scheme_index, strict=True))
        for i, model in enumerate(models):
            missing = [scheme for j, scheme in enumerate(known.values()) if (i, j) not in present]
            stock = _append(stock, model, missing)
    return stock


def _without(stock: Stock, models: set[int]) -> Stock:
    """The stock without these models, none of which has a pair left."""
    kept = np.array([i for i in range(len(stock.models)) if i not in models], dtype=np.int64)
    named = tuple(stock.models[i] for i in kept)
    return replace(stock, models=named, model=np.searchsorted(kept, stock.model))


def _append(stock: Stock, model: Model, wanted: list[Scheme]) -> Stock:
    """The stock with this model in these schemes added, walked one by one."""
    from estimators.walk import walk

    for scheme in wanted:
        single = walk(model, scheme)
        joined = Walk(
            **{f.name: np.append(getattr(stock.walk, f.name), getattr(single, f.name)) for f in fields(Walk)}
        )
        models = stock.models if model in stock.models else (*stock.models, model)
        known = stock.schemes if scheme in stock.schemes else (*stock.schemes, scheme)
        stock = Stock(
            models,
            known,
            np.append(stock.model, models.index(model)),
            np.append(stock.scheme, known.index(scheme)),
            joined,
            stock.left_out,
        )
    return stock
