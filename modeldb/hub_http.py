"""One request: the first bytes of a web address, with a limit on bytes and on time."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

CHUNK_BYTES = 64 << 10
_RANGE = re.compile(r"^bytes (\d+)-(\d+)/(\d+)$")


class Refused(Exception):
    """No answer, or not the one asked for; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """The first bytes of a file of `total` bytes."""

    data: bytes
    total: int
    etag: str


class _Redirects(HTTPRedirectHandler):
    """Follows redirects; the token stays with the host it was meant for."""

    def redirect_request(self, req: Request, *args: Any) -> Request | None:
        following = super().redirect_request(req, *args)
        if following is not None and urlsplit(following.full_url)[:2] != urlsplit(req.full_url)[:2]:
            following.headers.pop("Authorization", None)
        return following


def get(
    url: str,
    n_bytes: int,
    *,
    token: str = "",
    etag: str = "",
    timeout_s: float = 10.0,
    deadline_s: float = 60.0,
) -> Fetched | None:
    """The first `n_bytes` of `url`; None when its entity tag still is `etag`. Raises Refused."""
    headers = {"Range": f"bytes=0-{n_bytes - 1}", "User-Agent": "llm-plan", "Accept-Encoding": "identity"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if etag:
        headers["If-None-Match"] = etag
    end = time.monotonic() + deadline_s
    try:
        with build_opener(_Redirects).open(Request(url, headers=headers), timeout=timeout_s) as answer:
            return _body(answer, n_bytes, end)
    except HTTPError as error:
        with error:
            if error.code == 304 and etag:
                return None
            raise Refused(_reason(error.code, bool(token))) from None
    except TimeoutError:
        raise Refused("the server does not answer in time; try again, or give a local path") from None
    except URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise Refused("the server does not answer in time; try again, or give a local path") from None
        raise Refused(f"no network ({_short(error.reason)}); give a local path, or set HF_ENDPOINT") from None
    except (HTTPException, OSError, ValueError) as error:
        raise Refused(f"the connection broke ({_short(error)}); try again") from None


def _body(answer: HTTPResponse, n_bytes: int, end: float) -> Fetched:
    """A server that ignores ranges sends everything: no more than `n_bytes` of it are read."""
    pieces, left = [], n_bytes
    while left > 0:
        if time.monotonic() > end:
            raise TimeoutError
        piece = answer.read1(min(CHUNK_BYTES, left))
        if not piece:
            break
        pieces.append(piece)
        left -= len(piece)
    data = b"".join(pieces)
    return Fetched(data, _total(answer, len(data), left), answer.headers.get("ETag", ""))


def _total(answer: HTTPResponse, n_read: int, left: int) -> int:
    """Bytes of the whole file. Raises Refused where the answer contradicts itself."""
    if answer.status == 206:
        match = _RANGE.match(answer.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != 0:
            raise Refused("the server answered with another range than asked")
        total = int(match[3])
        if n_read < min(int(match[2]) + 1, total):
            raise Refused("the connection broke before the end; try again")
        return total
    length = answer.headers.get("Content-Length", "")
    total = int(length) if length.isdecimal() else n_read
    if left > 0 and n_read < total:
        raise Refused("the connection broke before the end; try again")
    return total


def _reason(code: int, with_token: bool) -> str:
    if code == 401:
        return "not found, or private; check the id" + ("" if with_token else ", or set HF_TOKEN")
    if code == 403:
        gated = "accept its licence on the model's page"
        return f"gated: {gated}" + ("" if with_token else ", then set HF_TOKEN")
    if code == 404:
        return "no such repository or file; check the id"
    if code == 416:
        return "is empty"
    if code == 429:
        return "too many requests; wait a minute" + ("" if with_token else ", or set HF_TOKEN")
    return f"the server answered {code}; try again later" if code >= 500 else f"the server answered {code}"


def _short(error: object) -> str:
    return " ".join(str(error).split())[:80] or type(error).__name__
