"""What probes may ask of this computer, as plain functions, so that tests answer from recordings."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwdb.device import Device

TIMEOUT_S = 10
MAX_CHARACTERS = 4 << 20


def run(command: Sequence[str]) -> str | None:
    """The standard output of `command`, or None where it is missing, fails or takes more than 10 s."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, errors="replace")
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def nvml() -> Any | None:
    """NVIDIA's management library, initialised; None where there is no driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # the binding raises its own classes, and OSError for a missing library
        return None
    return pynvml


def memory() -> tuple[int, int] | None:
    """Total and available bytes of host memory."""
    try:
        import psutil

        now = psutil.virtual_memory()
    except Exception:  # psutil raises what the platform raises
        return None
    return int(now.total), int(now.available)


def physical_cores() -> int | None:
    """Cores of this machine without their sibling threads; None where nothing tells."""
    try:
        import psutil

        return psutil.cpu_count(logical=False)
    except Exception:  # as above
        return None


@dataclass(frozen=True)
class System:
    """The doors of one computer."""

    root: Path = Path("/")
    platform: str = sys.platform
    run: Callable[[Sequence[str]], str | None] = run
    nvml: Callable[[], Any | None] = nvml
    memory: Callable[[], tuple[int, int] | None] = memory
    physical_cores: Callable[[], int | None] = physical_cores

    def read(self, path: str | Path) -> str | None:
        """The text of a file under `root`, stripped; None where it cannot be read."""
        try:
            with (self.root / str(path).lstrip("/")).open(encoding="utf-8", errors="replace") as stream:
                return stream.read(MAX_CHARACTERS).strip("\0\n\t ")
        except OSError:
            return None

    def number(self, path: str | Path) -> int | None:
        """The integer in a file; None for anything else (`max`, empty, unreadable)."""
        text = self.read(path)
        try:
            return int(text, 0) if text else None
        except ValueError:
            return None

    def glob(self, pattern: str) -> list[Path]:
        """The files under `root` that match, in name order."""
        try:
            return sorted(self.root.glob(pattern.lstrip("/")))
        except OSError:
            return []


@dataclass(frozen=True)
class Found:
    """One device as a probe saw it: only numbers that were read, with their origins.

    `names` are what tools print for it; `matched` is a catalogue entry that the hardware's own ids denote.
    """

    device: Device
    names: tuple[str, ...] = ()
    matched: Device | None = None
    free_bytes: int | None = None
    bus: str = ""
    notes: tuple[str, ...] = ()


def origins(where: str, values: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """`(field, where)` for each value that is there."""
    return tuple((name, where) for name, value in sorted(values.items()) if value is not None)
