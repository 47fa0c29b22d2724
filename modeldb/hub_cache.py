"""First bytes of files fetched before, on disk: one file per address, replaced whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path

from modeldb.hub_http import Fetched

MAX_ENTRY_BYTES = 300 << 20


def _place(folder: Path, url: str) -> Path:
    return folder / hashlib.sha256(url.encode()).hexdigest()[:40]


def load(folder: Path | None, url: str) -> Fetched | None:
    """What is kept of this address; None when nothing is, or when it cannot be read."""
    if folder is None:
        return None
    try:
        content = _place(folder, url).read_bytes()
        head, _, data = content.partition(b"\n")
        about = json.loads(head)
        fetched = Fetched(data, int(about["total"]), str(about["etag"]))
        return fetched if about["url"] == url and len(data) == about["kept"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def store(folder: Path | None, url: str, fetched: Fetched) -> None:
    """Keep it. A cache that cannot be written is no error."""
    if folder is None or len(fetched.data) > MAX_ENTRY_BYTES:
        return
    about = {"url": url, "total": fetched.total, "etag": fetched.etag, "kept": len(fetched.data)}
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(json.dumps(about).encode() + b"\n" + fetched.data)
            Path(temporary).replace(_place(folder, url))
        except OSError:
            Path(temporary).unlink(missing_ok=True)
