"""The user's own calibrations: one small JSON file per file of measurements, in the user's folder.

A calibration keeps what each row measured against what was predicted, with the origin of the file.
Undoing it is removing its file. Predictions change between versions of this package; a calibration made
against others is left aside, and says so.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from estimators import formats
from estimators.personal import Corrections, Residual
from planner.errors import ELSEWHERE, EnvironmentFailed, UnknownName
from planner.request import Request

SCHEMA_VERSION = 1
PHASES = ("prefill", "decode", "batch")
LARGEST_RATIO = 10.0  # of log seconds: beyond it a file is broken


@dataclass(frozen=True)
class Kept:
    """One measured row: what it was, what was printed and what was predicted in the same unit, its
    samples."""

    label: str
    metric: str
    measured: float
    predicted: float
    samples: tuple[float, ...]
    residual: Residual


@dataclass(frozen=True)
class Calibration:
    """What one file taught. `basis` identifies the predictions that it corrects; errors are medians of
    |predicted / measured - 1| over its rows, before it and with everything known after it."""

    id: str
    file: str
    sha256: str
    tool: str
    made: str
    basis: str
    error_before: float
    error_after: float
    rows: tuple[Kept, ...]


def folder() -> Path:
    """`LLM_PLAN_CONFIG_DIR/calibrations`, or the same under the user's configuration folder."""
    chosen = os.environ.get("LLM_PLAN_CONFIG_DIR")
    if chosen:
        return Path(chosen) / "calibrations"
    from platformdirs import user_config_path

    return user_config_path("llm-plan", appauthor=False) / "calibrations"


@cache
def basis() -> str:
    """Identifies the speeds that this version predicts: its version and its calibration."""
    import hashlib

    from estimators import efficiency
    from planner import __version__

    return f"{__version__}-{hashlib.sha256(efficiency.COMPILED.read_bytes()).hexdigest()[:12]}"


def write(found: Calibration, where: Path | None = None) -> Path:
    """Keep a calibration, in place of an older one of the same content; the file is replaced whole."""
    from hwdb import user_devices

    where = where or folder()
    path = where / f"{found.id}.json"
    text = json.dumps({"schema_version": SCHEMA_VERSION, **asdict(found)}, indent=1, allow_nan=False)
    try:
        user_devices.replace_file(path, text + "\n")
    except OSError as error:
        raise EnvironmentFailed(f"cannot write {path}: {error.strerror or error}", ELSEWHERE) from None
    return path


def read_all(where: Path | None = None) -> tuple[tuple[Calibration, ...], tuple[str, ...]]:
    """Every calibration kept, oldest first, and one remark per file that is not one."""
    found, remarks = [], []
    for path in sorted((where or folder()).glob("*.json")):
        try:
            found.append(parse(path.read_text(encoding="utf-8")))
        except OSError as error:
            remarks.append(f"{path} ignored: {error.strerror or error}")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            remarks.append(f"{path} ignored: not a calibration ({str(error)[:80]})")
    return tuple(sorted(found, key=lambda c: (c.made, c.id))), tuple(remarks)


def remove(name: str, where: Path | None = None) -> tuple[str, ...]:
    """Forget one calibration by the beginning of its id, or `all`; the ids removed. Errors: UnknownName."""
    where = where or folder()
    known = [path.stem for path in sorted(where.glob("*.json"))]
    chosen = known if name == "all" else [i for i in known if name and i.startswith(name)]
    if len(chosen) != 1 and name != "all":
        shown = ascii(name[:40])[1:-1]
        said = f"{len(chosen)} calibrations begin with" if chosen else "no calibration is called"
        raise UnknownName(
            f"{said} `{shown}`", "plan calibrate --list names them; --undo all removes every one"
        )
    for id in chosen:
        (where / f"{id}.json").unlink(missing_ok=True)
    return tuple(chosen)


def load(where: Path | None = None) -> tuple[Corrections | None, tuple[str, ...]]:
    """What predictions take from the user's measurements (None: there are none), and remarks on what was left
    aside."""
    found, remarks = read_all(where)
    current = [c for c in found if c.basis == basis()]
    old = [c.id for c in found if c.basis != basis()]
    if old:
        remarks += (
            f"calibration {', '.join(old)} was made with other predictions and is left aside: "
            "plan calibrate --from FILE again",
        )
    rows = tuple(row.residual for c in current for row in c.rows)
    return (Corrections(rows) if rows else None), remarks


def parse(text: str) -> Calibration:
    """A calibration from its file. ValueError, TypeError or KeyError where it is none."""
    content = json.loads(text)
    if not isinstance(content, dict) or content.pop("schema_version", None) != SCHEMA_VERSION:
        raise ValueError(f"not of schema version {SCHEMA_VERSION}")
    rows = tuple(_kept(row) for row in content.pop("rows"))
    found = Calibration(**content, rows=rows)
    words = (found.id, found.file, found.sha256, found.tool, found.made, found.basis)
    if not all(isinstance(word, str) for word in words) or not re.fullmatch(r"[0-9a-f]{6,64}", found.id):
        raise ValueError("id, file, sha256, tool, made and basis are texts")
    return found


def _kept(row: dict[str, Any]) -> Kept:
    held = dict(row)
    residual = Residual(**held.pop("residual"))
    ratio, noise = residual.log_ratio, residual.noise
    if not (isinstance(ratio, float | int) and abs(ratio) <= LARGEST_RATIO):
        raise ValueError("log_ratio is out of range")
    if not (isinstance(noise, float | int) and 0 <= noise <= LARGEST_RATIO) or residual.phase not in PHASES:
        raise ValueError("noise or phase is out of range")
    if residual.format and residual.format not in formats.INDEX:
        raise ValueError("a row's format is of no class known")
    for value in (residual.n_params, residual.size):
        if not (isinstance(value, float | int) and 0 <= value < math.inf):
            raise ValueError("n_params or size is out of range")
    if not isinstance(residual.n_devices, int) or not all(
        isinstance(getattr(residual, f.name), str) for f in fields(Residual) if f.type == "str"
    ):
        raise ValueError("a row's labels are texts")
    return Kept(**{**held, "samples": tuple(held["samples"])}, residual=residual)


def told(where: Path | None = None) -> Corrections | None:
    """`load`, with its remarks on stderr."""
    import sys

    found, remarks = load(where)
    for remark in remarks:
        print(f"note: {remark}", file=sys.stderr)
    return found


def into(request: Request, without: bool) -> Request:
    """The request with what the user measured, unless it is to be answered without."""
    mine = None if without else told()
    return request if mine is None else replace(request, mine=mine)
