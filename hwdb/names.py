"""How a hardware name is reduced to the key under which it is looked up.

The rule is declared here and nowhere else: case, spaces, dashes and brackets do not count, nor do the
words in `NOISE`, nor what a processor's brand string adds ("12th Gen", "64-Core Processor", "@ 2.60GHz",
"w/ Radeon 780M Graphics"). `16g` and `16 GiB` are written `16gb`. Equal keys are equal names; nothing
is ever matched by similarity.
"""

from __future__ import annotations

import re

NOISE = frozenset(
    {"nvidia", "amd", "intel", "apple", "aws", "geforce", "radeon", "tesla", "instinct"}
    | {"gpu", "graphics", "generation", "edition", "processor", "corporation", "inc"}
)

_MEMORY = re.compile(r"(?<![a-z0-9.])(\d+)\s*(?:g|gb|gib)(?![a-z0-9])")
_BRAND = (
    re.compile(r"\s@.*$"),
    re.compile(r"\s(?:w/|with radeon\b).*$", re.IGNORECASE),
    re.compile(r"\b\d+-core processor\b|\b\d+-cores\b", re.IGNORECASE),
    re.compile(r"^\d+th gen\s+", re.IGNORECASE),
)


def brand(text: str) -> str:
    """A processor's brand string without what it adds to the name; any other name as it is."""
    for pattern in _BRAND:
        text = pattern.sub(" ", text)
    return text.strip()


def key(name: str) -> str:
    """The look-up key of `name`; empty when nothing but noise is left."""
    text = name.lower().replace("™", "").replace("®", "")
    printed = "(r)" in text or " @ " in text
    text = brand(text.replace("(r)", " ").replace("(tm)", " ").strip())
    text = _MEMORY.sub(r"\1gb", text)
    words = [word for word in re.split(r"[^a-z0-9]+", text) if word and word not in NOISE]
    if printed:
        words = [word for word in words if word != "cpu"]
    return _MEMORY.sub(r"\1gb", "".join(words))  # `0:g` too, once nothing stands between


def split_memory(name: str) -> tuple[str, int | None]:
    """`"rtx 4060 ti 16g"` -> `("rtx 4060 ti", 16)`: a name and the GiB that ends it, if any."""
    text = _MEMORY.sub(r" \1gb ", name.lower().replace("-", " ")).strip()
    match = re.fullmatch(r"(.+?)\s(\d+)gb", text)
    return (match[1].strip(), int(match[2])) if match else (name, None)
