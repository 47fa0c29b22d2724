"""Where a model's weights are found: a known repository, a path, or the commands that make the file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import PurePath

from estimators.deployment import Deployment
from modeldb.model import Model
from modeldb.scheme import Scheme


@dataclass(frozen=True, slots=True)
class Reference:
    """`repository` is a published one with exactly these weights, or ""; otherwise `path` is the local
    file or folder, made by the commands of `prepare`."""

    repository: str
    path: str
    prepare: tuple[tuple[str, ...], ...] = ()
    note: str = ""


@cache
def _repositories() -> dict[str, dict[str, str]]:
    text = files("planner.data").joinpath("repositories.json").read_text(encoding="utf-8")
    known: dict[str, dict[str, str]] = json.loads(text)["repositories"]
    return known


def stem(model: Model) -> str:
    """The name people give the model's files: `Qwen3-8B` for `Qwen/Qwen3-8B`."""
    return (model.hf_id or model.name or model.id).rsplit("/", 1)[-1]


def folder(model: Model) -> str:
    """Where the weights of a model of the user's own lie: what was read, or the folder of a configuration. "" for a
    model of the hub."""
    if model.hf_id:
        return ""
    return model.source if model.file_tensors else str(PurePath(model.source).parent)


def plain(model: Model) -> str:
    """Where engines find the weights as released: a repository, or a folder."""
    return model.hf_id or folder(model)


def label(scheme: Scheme) -> str:
    """The scheme as engines spell it: `Q4_K_M`, without `+imatrix`."""
    return scheme.id.split("+")[0]


def hub(repository: str, scheme: Scheme) -> str:
    """`repository:Q4_K_M`; repositories of natively MXFP4 models hold one file, which has no tag of ours."""
    return repository if scheme.family == "mxfp4" else f"{repository}:{label(scheme)}"


def gguf(deployment: Deployment) -> Reference:
    """A GGUF file of the deployment's model in its scheme."""
    model, quant = deployment.model, label(deployment.scheme)
    if model.file_tensors:
        return Reference("", model.source or f"{model.id}.gguf")
    known = _repositories().get(model.hf_id, {}).get("gguf", "")
    if known:
        return Reference(known, "")
    name = stem(model)
    first = quant if quant in ("F16", "BF16", "F32") else "F16"
    base, file = f"{name}-{first}.gguf", f"{name}-{quant}.gguf"
    own, prepare = folder(model), list[tuple[str, ...]]()
    if not own:
        prepare.append(("hf", "download", model.hf_id, "--local-dir", name))
    prepare.append(
        ("python", "convert_hf_to_gguf.py", own or name, "--outtype", first.lower(), "--outfile", base)
    )
    if file != base:
        prepare.append(("llama-quantize", base, file, quant))
    note = "or download a GGUF of this model at this quantization, if you trust its publisher"
    return Reference("", file, tuple(prepare), note)


def safetensors(deployment: Deployment) -> Reference:
    """A Hugging Face repository or folder in the deployment's scheme."""
    model, scheme = deployment.model, deployment.scheme
    if model.file_tensors and model.source:
        return Reference("", model.source)
    if scheme.family in ("bf16", "f16", "f32", "native") or scheme.id in ("mxfp4-hf", model.native_dtype):
        return Reference(model.hf_id, folder(model))
    known = _repositories().get(model.hf_id, {}).get(scheme.family, "")
    if known:
        return Reference(known, "")
    made = f"{stem(model)}-{scheme.id}"
    what = f"{scheme.id} weights of {model.hf_id or model.name}"
    return Reference("", made, (), f"put {what} in ./{made}: no repository of them is known here")
