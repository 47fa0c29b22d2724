"""Models in Hugging Face repositories, of which only headers are fetched, by range request.

Honoured: HF_ENDPOINT, HF_TOKEN, HF_HOME and its token file, HF_HUB_OFFLINE. The token goes to the endpoint's
own host only. What was fetched is kept in the user's cache folder and checked by its entity tag before it is
used again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modeldb.errors import BrokenFile, UnsupportedModel
from modeldb.hub_http import Fetched, Refused, get
from modeldb.model import Model
from modeldb.scheme import Scheme

FIRST_BYTES = 512 << 10
SMALL_FILE_BYTES = 32 << 20
MAX_SHARDS = 2000
N_CONNECTIONS = 8
_REFERENCE = re.compile(r"^([\w.-]+/[\w.-]+?)(?:(:)([\w.-]+)|/([\w./ -]+\.gguf))?$")


@dataclass(frozen=True)
class Hub:
    """Where and how to fetch."""

    endpoint: str
    token: str
    offline: bool
    cache: Path | None
    timeout_s: float = 10.0
    deadline_s: float = 60.0


def from_environment(offline: bool = False) -> Hub:
    """The hub that HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE describe. BrokenFile where the endpoint is no address."""
    env = os.environ
    endpoint = env.get("HF_ENDPOINT", "").strip().rstrip("/") or "https://huggingface.co"
    if not re.match(r"^https?://[^\s/]+", endpoint):
        raise BrokenFile(f"HF_ENDPOINT is {endpoint[:60]!r}, not a web address")
    switched_off = env.get("HF_HUB_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on")
    return Hub(endpoint, _token(), offline or switched_off, cache_folder())


def cache_folder() -> Path:
    """Where headers and configurations are kept."""
    from platformdirs import user_cache_path

    return user_cache_path("llm-plan") / "hub"


def _token() -> str:
    env = os.environ
    token = env.get("HF_TOKEN") or env.get("HUGGING_FACE_HUB_TOKEN") or ""
    if not token:
        home = Path(env.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
        try:
            token = Path(env.get("HF_TOKEN_PATH") or home / "token").read_text(encoding="ascii")
        except (OSError, ValueError):
            token = ""
    token = token.strip()
    return token if token.isascii() and token.isprintable() and " " not in token else ""


def read(text: str, *, offline: bool = False) -> tuple[Model, Scheme]:
    """The model of a repository id: `user/repo`, `user/repo:Q4_K_M`, or `user/repo/file.gguf`.

    Raises BrokenFile or UnsupportedModel, one line that says what to do.
    """
    return read_from(from_environment(offline), text)


def read_from(hub: Hub, text: str) -> tuple[Model, Scheme]:
    """`read`, from a hub of your own."""
    match = _REFERENCE.match(text.strip())
    if match is None or ".." in text:
        raise UnsupportedModel(
            f"{text[:80]}: not a repository id; write user/repo, user/repo:Q4_K_M or a path"
        )
    repo, tag, file = match[1], match[3], match[4]
    if file:
        return _gguf(hub, repo, file)
    names, licence = _listing(hub, repo)
    if tag:
        return _gguf(hub, repo, choose(names, tag, repo))
    if "config.json" in names:
        return _checkpoint(hub, repo, names, licence)
    ggufs = [n for n in names if n.endswith(".gguf") and "mmproj" not in n.lower()]
    if not ggufs:
        raise UnsupportedModel(f"{repo}: has neither config.json nor a GGUF file")
    examples = ", ".join(ggufs[:4])
    raise UnsupportedModel(f"{repo}: holds GGUF files only; say which: {repo}:Q4_K_M, or one of {examples}")


def choose(names: list[str], tag: str, repo: str) -> str:
    """The GGUF file of a tag (`Q4_K_M`); the first part where it is split."""
    wanted = re.compile(rf"(^|[^A-Za-z0-9]){re.escape(tag)}([^A-Za-z0-9]|$)", re.IGNORECASE)
    ggufs = [n for n in names if n.endswith(".gguf") and "mmproj" not in n.lower()]
    found = sorted(n for n in ggufs if wanted.search(n.removesuffix(".gguf")))
    found = [n for n in found if "-of-" not in n or "-00001-of-" in n]
    # `Q4_K` also matches inside `Q4_K_M` names, and `UD-Q4_K_XL` holds `Q4_K_XL`: prefer names that end
    # with the tag
    ending = [
        n for n in found if re.search(rf"[-.]{re.escape(tag)}(-00001-of-\d+)?\.gguf$", n, re.IGNORECASE)
    ]
    plain = [n for n in ending if not re.search(rf"UD-{re.escape(tag)}", n, re.IGNORECASE)]
    found = plain or ending or found
    if len(found) == 1:
        return found[0]
    if not found:
        raise UnsupportedModel(
            f"{repo}: no GGUF file is tagged {tag}; it has {', '.join(ggufs[:8]) or 'none'}"
        )
    raise UnsupportedModel(f"{repo}: {tag} could be {', '.join(found[:6])}; write {repo}/FILE.gguf")


def _listing(hub: Hub, repo: str) -> tuple[list[str], str]:
    """(file names, licence) of a repository."""
    from modeldb.hf_config import load_json

    fetched = _fetch(hub, f"{hub.endpoint}/api/models/{repo}", SMALL_FILE_BYTES, repo, whole=True)
    table = load_json(fetched.data, f"{repo}: the hub's answer")
    siblings = table.get("siblings")
    entries = siblings if isinstance(siblings, list) else []
    names = [e["rfilename"] for e in entries if isinstance(e, dict) and isinstance(e.get("rfilename"), str)]
    tags = table.get("tags")
    licences = (
        [t for t in tags if isinstance(t, str) and t.startswith("license:")] if isinstance(tags, list) else []
    )
    return names, licences[0].removeprefix("license:") if licences else ""


def _checkpoint(hub: Hub, repo: str, names: list[str], licence: str) -> tuple[Model, Scheme]:
    from modeldb.hf_config import MAX_CONFIG_BYTES, load_json
    from modeldb.readers import from_config, with_tensors
    from modeldb.safetensors_file import INDEX, joined, shard_names

    config = load_json(_file(hub, repo, "config.json", MAX_CONFIG_BYTES), f"{repo}/config.json")
    model, scheme = from_config(config, f"{repo}/config.json", repo.partition("/")[2])
    model = replace(model, hf_id=repo, licence=licence)
    weight_map: dict[str, str] = {}
    if INDEX in names:
        weight_map = shard_names(_file(hub, repo, INDEX, SMALL_FILE_BYTES), f"{repo}/{INDEX}")
    shards = sorted(set(weight_map.values())) or [n for n in names if n == "model.safetensors"]
    if not shards:
        return model, scheme
    if len(shards) > MAX_SHARDS:
        raise BrokenFile(f"{repo}: {len(shards):,} safetensors files are not plausible")
    with ThreadPoolExecutor(N_CONNECTIONS) as pool:
        parts = list(pool.map(lambda name: _safetensors(hub, repo, name), shards))
    return with_tensors(model, scheme, joined(parts, weight_map, repo), config, repo)


def _safetensors(hub: Hub, repo: str, name: str) -> tuple[Any, ...]:
    from modeldb.safetensors_file import read_header

    prefix = _prefix(hub, repo, name)
    total = prefix(FIRST_BYTES).total

    def read(offset: int, n_bytes: int) -> bytes:
        return prefix(offset + n_bytes).data[offset : offset + n_bytes]

    return read_header(read, total, f"{repo}/{name}")


def _gguf(hub: Hub, repo: str, name: str) -> tuple[Model, Scheme]:
    from modeldb.gguf_file import join, part_names, read_header
    from modeldb.gguf_model import read_gguf

    folder, _, last = name.rpartition("/")
    parts = [f"{folder}/{p}" if folder else p for p in part_names(last)]
    if len(parts) > MAX_SHARDS:
        raise BrokenFile(f"{repo}: {len(parts):,} parts are not plausible")

    def header(i: int) -> Any:
        prefix = _prefix(hub, repo, parts[i])
        total = prefix(FIRST_BYTES).total
        return read_header(lambda n: prefix(n).data[:n], total, f"{repo}/{parts[i]}", i)

    with ThreadPoolExecutor(N_CONNECTIONS) as pool:
        headers = list(pool.map(header, range(len(parts))))
    file = join(headers, tuple(Path(p) for p in parts), f"{repo}/{name}")
    model, scheme = read_gguf(file)
    return replace(model, hf_id=repo, source=f"GGUF header of {repo}/{name}"), scheme


def _prefix(hub: Hub, repo: str, name: str) -> Callable[[int], Fetched]:
    """A function n -> at least the first n bytes of a file (all of them when it is shorter), fetched as
    they grow."""
    kept: list[Fetched] = []

    def first(n_bytes: int) -> Fetched:
        if not kept or (len(kept[-1].data) < n_bytes and len(kept[-1].data) < kept[-1].total):
            kept.append(_fetch(hub, _address(hub, repo, name), n_bytes, f"{repo}/{name}"))
        return kept[-1]

    return first


def _file(hub: Hub, repo: str, name: str, limit: int) -> bytes:
    return _fetch(hub, _address(hub, repo, name), limit, f"{repo}/{name}", whole=True).data


def _address(hub: Hub, repo: str, name: str) -> str:
    from urllib.parse import quote

    return f"{hub.endpoint}/{repo}/resolve/main/{quote(name)}"


def _fetch(hub: Hub, url: str, n_bytes: int, what: str, whole: bool = False) -> Fetched:
    """The first `n_bytes` of an address, from the cache where its entity tag still holds. `whole`: refuse
    longer."""
    from modeldb import hub_cache

    known = hub_cache.load(hub.cache, url)
    enough = known is not None and (len(known.data) >= n_bytes or len(known.data) == known.total)
    if hub.offline:
        if known is not None and enough:
            return known
        raise BrokenFile(f"{what}: not in the cache, and offline; go online once, or give a local path")
    try:
        etag = known.etag if known is not None and enough else ""
        fetched = get(
            url, n_bytes, token=hub.token, etag=etag, timeout_s=hub.timeout_s, deadline_s=hub.deadline_s
        )
    except Refused as refused:
        raise BrokenFile(f"{what}: {refused}") from None
    if fetched is None:
        assert known is not None
        return known
    if whole and fetched.total > len(fetched.data):
        raise BrokenFile(f"{what}: {fetched.total:,} bytes, longer than plausible")
    hub_cache.store(hub.cache, url, fetched)
    return fetched
