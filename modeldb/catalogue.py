"""The models this project knows, and the one way from a name to a model.

A name resolves only where it is declared: an id, a Hugging Face id, an Ollama tag or an alias in
`modeldb/families`, without regard to case, or the part of a Hugging Face id or alias after the owner when one
model bears it. Close names are suggested in the error, never used.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from modeldb.errors import AmbiguousModel, UnknownModel
from modeldb.model import Evidence, Model
from modeldb.shape import Shape, build

COMPILED = Path(__file__).parent / "data" / "catalogue.json"


@dataclass(frozen=True)
class Catalogue:
    """All models. Entries are decoded when asked for; build one with `load`."""

    entries: tuple[dict[str, Any], ...]
    _decoded: dict[str, Model] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def models(self) -> tuple[Model, ...]:
        """Every model, family by family."""
        return tuple(self._model(entry) for entry in self.entries)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        return tuple(entry["id"] for entry in self.entries)

    def get(self, id: str) -> Model:
        """The model of exactly this id. Raises UnknownModel."""
        if id not in self._by_id:
            raise UnknownModel(id, self._suggestions(id))
        return self._model(self._by_id[id])

    def resolve(self, name: str) -> Model:
        """The model of a declared name. Raises UnknownModel or AmbiguousModel."""
        asked = name.strip().lower()
        for spelling in dict.fromkeys((asked, "-".join(asked.split()))):  # model cards write spaces
            for table in (self._exact, self._short):
                if ids := table.get(spelling):
                    if len(ids) > 1:
                        raise AmbiguousModel(name, tuple(sorted(ids)))
                    return self.get(next(iter(ids)))
        raise UnknownModel(name, self._suggestions(name))

    def names(self) -> tuple[str, ...]:
        """Ids and Ollama tags, for completion."""
        tags = (entry["ollama"] for entry in self.entries if entry.get("ollama"))
        return tuple(sorted({*self.ids, *tags}))

    @cached_property
    def _by_id(self) -> dict[str, dict[str, Any]]:
        return {entry["id"]: entry for entry in self.entries}

    @cached_property
    def _exact(self) -> dict[str, set[str]]:
        """Declared name, lower case -> ids. An id,
        a tag or a repository goes before another model's alias."""
        table: dict[str, set[str]] = {}
        for entry in self.entries:
            for name in (entry["id"], entry["hf_id"], entry.get("ollama")):
                if name:
                    table.setdefault(name.lower(), set()).add(entry["id"])
        aliases: dict[str, set[str]] = {}
        for entry in self.entries:
            for name in entry.get("aliases", ()):
                aliases.setdefault(name.lower(), set()).add(entry["id"])
        return {**aliases, **table}

    @cached_property
    def _short(self) -> dict[str, set[str]]:
        """Names without the owner -> ids."""
        table: dict[str, set[str]] = {}
        for name, ids in self._exact.items():
            if "/" in name:
                table.setdefault(name.rsplit("/", 1)[1], set()).update(ids)
        return table

    def _suggestions(self, name: str) -> tuple[str, ...]:
        asked = name.strip().lower().rsplit("/", 1)[-1]
        pool = {**{n.rsplit("/", 1)[-1]: n for n in self._exact}, **{n: n for n in self.names()}}
        close = difflib.get_close_matches(asked, pool, 6, 0.6)
        found = (next(iter(sorted(self._exact[pool[c].lower()]))) for c in close)
        return tuple(dict.fromkeys(found))[:3]

    def _model(self, entry: dict[str, Any]) -> Model:
        if entry["id"] not in self._decoded:
            self._decoded[entry["id"]] = decode(entry)
        return self._decoded[entry["id"]]


def decode(entry: dict[str, Any]) -> Model:
    """A compiled entry as a Model."""
    shape = dict(entry["shape"])
    if "nas" in shape:
        shape["nas"] = tuple((group, inner) for group, inner in shape["nas"])
    return build(
        Shape(**shape),
        id=entry["id"],
        name=entry.get("name") or entry["hf_id"].split("/")[-1],
        hf_id=entry["hf_id"],
        family=entry["family"],
        base=entry.get("base", entry["id"]),
        modality=entry.get("modality", "text"),
        licence=entry["licence"],
        release_date=entry.get("released", ""),
        ollama_tag=entry.get("ollama", ""),
        aliases=tuple(entry.get("aliases", ())),
        evidence=tuple(Evidence(b, s, u, k, source) for b, s, u, k, source, _ in entry["evidence"]),
        source=entry["source"],
        verified=entry["verified"],
        unsourced=tuple(entry.get("unsourced", ())),
    )


@cache
def load() -> Catalogue:
    """The catalogue, read once from its compiled file."""
    return Catalogue(tuple(json.loads(COMPILED.read_text(encoding="utf-8"))["models"]))
