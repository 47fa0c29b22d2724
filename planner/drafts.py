"""What importers share: a record on its way to a row of speed.csv, the device and the model it speaks of."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hwdb.device import Device
from modeldb.errors import ModelError
from modeldb.model import Model
from modeldb.scheme import Scheme
from planner import names
from planner.asks import Ask, Refusal
from planner.errors import UsageError

#: How far a file's own counts may lie from our bill: parameters and bytes are exact but for tables and
#: padding that engines count differently (rotation tables, vocabularies rounded up).
PARAMETERS_TOLERANCE = 0.005
BYTES_TOLERANCE = 0.02
#: Files whose publisher's rule is not public: their label stands for a size only.
LOOSE_BYTES_TOLERANCE = 0.25
MOST_TOKENS = 10**8  # a length, or a number of requests, beyond this is a broken file


@dataclass(frozen=True, slots=True)
class Hints:
    """What the user says of a file, over what it says itself. `gpus` is (count, name)."""

    gpus: tuple[int, str] | None = None
    model: str = ""
    quant: str = ""
    engine: str = ""


@dataclass(frozen=True)
class Draft:
    """A record as the fields of a row of speed.csv, its value, and what such a row cannot hold. `refusal`
    says why it cannot be used at all; `refine` sets what the fields cannot express."""

    where: str
    label: str
    fields: dict[str, str]
    value: float
    samples: tuple[float, ...] = ()
    deviation: float | None = None
    date: str = ""
    settings: str = ""
    refusal: str = ""
    notes: tuple[str, ...] = ()
    refine: Callable[[Ask], Ask] | None = None
    device: Device | None = None  # where the fields' name of it is in no catalogue


def refused(where: str, label: str, reason: str) -> Draft:
    """A record that cannot be used."""
    return Draft(where, label, {}, 0.0, refusal=reason)


def fields(**known: Any) -> dict[str, str]:
    """A row of speed.csv from what is known; the rest is blank."""
    from planner.rows import READS

    return {
        **dict.fromkeys(READS["speed"], ""),
        "source": "your measurements",
        **{k: str(v) for k, v in known.items()},
    }


def means(d: dict[str, Any], n_done: int) -> dict[str, Any]:
    """Lengths and times of a run of `n_done` requests, by the keys that vLLM's and SGLang's tools share."""
    return {
        "prompt_tokens": count(d.get("total_input_tokens")) / max(1, n_done),
        "output_tokens": count(d.get("total_output_tokens")) / max(1, n_done),
        "tpot_ms": number(d.get("mean_tpot_ms")),
        "tpot_deviation_ms": number(d.get("std_tpot_ms")),
        "ttft_ms": number(d.get("mean_ttft_ms")),
        "ttft_deviation_ms": number(d.get("std_ttft_ms")),
    }


def number(value: Any) -> float | None:
    """A finite number, also where a tool wrote it as text; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def count(value: Any, default: int = 0) -> int:
    """A whole number; `default` for anything else."""
    found = number(value)
    return default if found is None or abs(found) > 1e15 else round(found)


def numbers(values: Any) -> tuple[float, ...]:
    """The positive numbers of a list; empty unless all are."""
    if not isinstance(values, list):
        return ()
    found = [number(v) for v in values]
    return (
        tuple(v for v in found if v is not None and v > 0)
        if all(v is not None and v > 0 for v in found)
        else ()
    )


def text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def device(printed: str, hints: Hints, where: str, cpu: bool = False) -> tuple[Device, int]:
    """(device, how many) that a record names, or the user. Raises UsageError where neither is known by name.

    A row that ran on the `cpu` is not moved to the GPU that the user names, nor the other way round."""
    if hints.gpus:
        found = names.device(hints.gpus[1])
        if isinstance(found, Refusal):
            raise UsageError(f"--gpu: {found.reason}", "plan hw lists the devices")
        if cpu == (found.kind == "cpu"):
            return found, hints.gpus[0]
    parts = [part.strip() for part in re.split(r"[,;]", printed) if part.strip()]
    if not parts:
        raise UsageError(
            f"{where} does not say on which device it was measured", "add --gpu NAME (or 2xNAME)"
        )
    if len(set(parts)) > 1:
        raise UsageError(
            f"{where} was measured on different devices together ({', '.join(sorted(set(parts)))})",
            "one file for each kind of device",
        )
    found = _known(parts[0])
    if isinstance(found, Refusal) and cpu and (own := this_processor(parts[0])):
        return own, 1
    if isinstance(found, Refusal):
        raise UsageError(f"{where}: {found.reason}", "say which device it is: --gpu NAME; plan hw lists them")
    return found, len(parts)


def this_processor(name: str) -> Device | None:
    """This machine's processor where it has that name: one that no catalogue lists can be measured, too."""
    from hwdb.detect import detect

    host = detect().host
    return host if host is not None and host.name.casefold() == name.casefold() else None


def _known(name: str) -> Device | Refusal:
    """The device of a driver's string; Vulkan drivers add their own name in brackets."""
    found = names.device(name)
    bare = re.sub(r"\s*\((?:RADV|AMDVLK|LLVM|NVK|ANV|KMT|MoltenVK)\b[^)]*\)\s*$", "", name)
    return found if isinstance(found, Device) or bare == name else names.device(bare)


def model(spellings: tuple[str, ...], hints: Hints) -> Model | Refusal:
    """The catalogue's model of the user's name, or of the first of these names that is one."""
    return names.model(hints.model) if hints.model else names.model(*(s for s in spellings if s))


def scheme(label: str, engine: str, of: Model, hints: Hints) -> Scheme | Refusal:
    """The scheme of the user's label or of this one."""
    return names.quant(hints.quant or label, engine, of.id, of.native_dtype)


def witness(of: Model, held: Scheme, parameters: float, size: float, rounding: tuple[float, float]) -> str:
    """Why a file's own counts say that it is another model or another quantization; "" where they agree.

    `rounding` is half the last printed digit of either, where the tool rounds."""
    from modeldb import gguf_layout

    try:
        ours = float(sum(math.prod(t.shape) for t in gguf_layout.tensors(of)))
        our_bytes = float(gguf_layout.model_bytes(of, held))
    except ModelError as error:
        return str(error).split("\n")[0]
    if parameters and abs(parameters - ours) > PARAMETERS_TOLERANCE * ours + rounding[0]:
        return (
            f"its file has {parameters:,.0f} parameters, {of.id} has {ours:,.0f}: "
            "not the same model; name it with --model"
        )
    loose = LOOSE_BYTES_TOLERANCE if held.approximate else BYTES_TOLERANCE
    if size and abs(size - our_bytes) > loose * our_bytes + rounding[1]:
        return (
            f"its weights are {size:,.0f} bytes, {of.id} in {held.label or held.id} has {our_bytes:,.0f}: "
            "not the same quantization; name it with --quant"
        )
    return ""
