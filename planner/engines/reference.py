"""Where a model's weights are found: a known repository, a path, or the commands that make the file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

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
    base, file = f"{name}-F16.gguf", f"{name}-{quant}.gguf"
    prepare: tuple[tuple[str, ...], ...] = (
        ("hf", "download", model.hf_id, "--local-dir", name),
        ("python", "convert_hf_to_gguf.py", name, "--outtype", "f16", "--outfile", base),
    )
    if quant not in ("F16", "BF16", "F32"):
        prepare += (("llama-quantize", base, file, quant),)
    else:
        file = f"{name}-{quant}.gguf"
        prepare = (prepare[0], (*prepare[1][:4], quant.lower(), "--outfile", file))
    note = "or download a GGUF of this model at this quantization, if you trust its publisher"
    return Reference("", file, prepare, note)


def safetensors(deployment: Deployment) -> Reference:
    """A Hugging Face repository or folder in the deployment's scheme."""
    model, scheme = deployment.model, deployment.scheme
    if model.file_tensors and model.source:
        return Reference("", model.source)
    if scheme.family in ("bf16", "f16", "f32", "native") or scheme.id in ("mxfp4-hf", model.native_dtype):
        return Reference(model.hf_id, "")
    known = _repositories().get(model.hf_id, {}).get(scheme.family, "")
    if known:
        return Reference(known, "")
    folder = f"{stem(model)}-{scheme.id}"
    return Reference(
        "",
        folder,
        (),
        f"put {scheme.id} weights of {model.hf_id} in ./{folder}: no repository of them is known here",
    )
