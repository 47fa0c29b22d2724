"""One door for models that are not in the catalogue: a GGUF file, a Hugging Face folder, a `config.json`, or,
with a network, a repository id."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from modeldb.errors import BrokenFile, ModelError, UnsupportedModel
from modeldb.model import Model
from modeldb.scheme import Scheme

_REPOSITORY = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}([:/][\w./ -]{1,200})?$")
_SUFFIXES = (".gguf", ".json", ".safetensors")


def looks_like_path(text: str) -> bool:
    """Whether `text` means a file or folder rather than a name in the catalogue."""
    if text.startswith(("./", "../", "/", "~", ".\\")) or text in (".", ".."):
        return True
    if text.lower().endswith(_SUFFIXES) or re.match(r"^[A-Za-z]:[\\/]", text):
        return True
    return ("/" in text or "\\" in text) and exists(Path(text))


def looks_like_repository(text: str) -> bool:
    """Whether `text` has the form of a Hugging Face repository id (`Qwen/Qwen3-8B`, `user/repo:Q4_K_M`)."""
    return _REPOSITORY.match(text) is not None and not text.startswith((".", "~")) and ".." not in text


def exists(path: Path) -> bool:
    """Whether something is there; False for what cannot be a path."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def read(text: str, *, offline: bool = False) -> tuple[Model, Scheme]:
    """The model at a path or repository id, and how it is stored.

    Raises ModelError (BrokenFile, UnsupportedModel): one line that says what to do next. With `offline`, or
    with HF_HUB_OFFLINE set, a repository is read from the cache or not at all.
    """
    try:
        return _read(text, offline)
    except RecursionError:
        raise BrokenFile(f"{text}: nested too deeply") from None
    except ModelError as error:
        said = _printable(str(error))
        if said == str(error):
            raise
        raise (type(error) if isinstance(error, BrokenFile | UnsupportedModel) else BrokenFile)(
            said
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BrokenFile(f"{_line(text)}: cannot be read: {_line(reason)}") from None


def _line(text: str) -> str:
    return _printable(" ".join(text.split())[:200])


def _printable(text: str) -> str:
    """One line: names inside files may hold anything."""
    return "".join(c if c.isprintable() else "?" for c in text[:3000])


def _read(text: str, offline: bool) -> tuple[Model, Scheme]:
    path = Path(text).expanduser()
    if not exists(path):
        if looks_like_repository(text) and not path.is_absolute():
            from modeldb.hub import read as read_repository

            return read_repository(text, offline=offline)
        raise BrokenFile(f"{_line(text)}: no such file or folder")
    if path.is_dir():
        return read_folder(path)
    if not path.is_file():
        raise BrokenFile(f"{path}: not a regular file")
    if path.suffix.lower() == ".json":
        return read_config_file(path)
    if path.suffix.lower() == ".safetensors":
        return read_folder(path.parent) if (path.parent / "config.json").is_file() else _no_config(path)
    with path.open("rb") as file:
        magic = file.read(4)
    if path.suffix.lower() == ".gguf" or magic == b"GGUF":
        return read_gguf_file(path)
    raise UnsupportedModel(f"{path}: not a GGUF, safetensors or config.json file; these are what can be read")


def _no_config(path: Path) -> tuple[Model, Scheme]:
    raise UnsupportedModel(
        f"{path}: has no config.json beside it; put the repository's config.json in its folder"
    )


def read_gguf_file(path: Path) -> tuple[Model, Scheme]:
    """A GGUF file, or the first of its parts."""
    from modeldb.gguf_file import open_gguf
    from modeldb.gguf_model import read_gguf

    return read_gguf(open_gguf(path))


def read_config_file(path: Path) -> tuple[Model, Scheme]:
    """A bare configuration: what the architecture and its `quantization_config` say."""
    from modeldb.hf_config import MAX_CONFIG_BYTES, load_json

    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise BrokenFile(f"{path}: {path.stat().st_size:,} bytes is not plausible for a configuration")
    config = load_json(path.read_bytes(), str(path))
    title = path.resolve().parent.name if path.name == "config.json" else path.stem
    return from_config(config, str(path), title)


def from_config(config: Mapping[str, Any], name: str, title: str) -> tuple[Model, Scheme]:
    """A configuration that was read already; `name` stands in errors, `title` names the model."""
    from modeldb.hf_config import model_from_config
    from modeldb.hf_quantization import scheme_of

    model = model_from_config(config, name, title)
    return model, scheme_of(config, model.native_dtype, name)


def read_folder(folder: Path) -> tuple[Model, Scheme]:
    """A Hugging Face folder: its configuration, and its safetensors' headers where there are some."""
    config = folder / "config.json"
    if not config.is_file():
        ggufs = sorted(folder.glob("*.gguf"))
        if len(ggufs) == 1 or (ggufs and all("-of-" in g.name for g in ggufs)):
            return read_gguf_file(ggufs[0])
        what = f"{len(ggufs)} GGUF files: give one of them" if ggufs else "no config.json and no GGUF file"
        raise UnsupportedModel(f"{folder}: holds {what}")
    from modeldb.safetensors_file import open_folder

    model, scheme = read_config_file(config)
    stored = open_folder(folder)
    if not stored:
        return model, scheme
    from modeldb.hf_config import MAX_CONFIG_BYTES, load_json

    table = load_json(config.read_bytes()[:MAX_CONFIG_BYTES], str(config))
    return with_tensors(model, scheme, stored, table, str(folder))


def with_tensors(
    model: Model, scheme: Scheme, stored: tuple[Any, ...], config: Mapping[str, Any], name: str
) -> tuple[Model, Scheme]:
    """The model with the exact tensors of its files, and the scheme `file` labelled as the configuration
    says."""
    from modeldb.hf_quantization import quantization
    from modeldb.safetensors_model import packing, renamed_once, tensors

    found = renamed_once(tensors(stored, packing(quantization(config)), model.n_layers))
    n_bytes: Counter[str] = Counter()
    for t in stored:
        n_bytes[t.dtype] += t.nbytes
    n_weights = sum(prod(t.shape) for t in found if t.name.endswith((".weight", ".bias")))
    bits = 8 * sum(n_bytes.values()) / max(n_weights, 1)
    label = scheme.id if quantization(config) else n_bytes.most_common(1)[0][0]
    model = replace(model, file_tensors=found, source=f"safetensors headers of {name}; {model.source}")
    return model, replace(scheme, id="file", nominal_bits=bits, label=label, source=model.source)
