"""Names for shell completion: models, devices, tasks, engines. Each takes what was typed so far."""

from __future__ import annotations

from collections.abc import Iterable


def models(incomplete: str) -> list[str]:
    """Names of models."""
    from modeldb import catalogue

    return _starting(catalogue.load().names(), incomplete)


def devices(incomplete: str) -> list[str]:
    """Device names, each as one word of a shell; a leading count as in `2x3090` is kept."""
    from hwdb import catalogue

    names = {name.replace(" ", "-").lower() for name in catalogue.load().names()}
    incomplete = incomplete.replace(" ", "-")
    count, separator, rest = incomplete.partition("x")
    if separator and count.isdigit():
        return [f"{count}x{name}" for name in _starting(names, rest)]
    return _starting(names, incomplete)


def tasks(incomplete: str) -> list[str]:
    """Names of tasks."""
    from planner import tasks as all_tasks

    return _starting(all_tasks.load(), incomplete)


def engines(incomplete: str) -> list[str]:
    """Names of engines."""
    from planner import engines as all_engines

    return _starting(all_engines.names(), incomplete)


def formats(incomplete: str) -> list[str]:
    """Formats of an answer."""
    from planner.terminal import FORMATS

    return _starting(FORMATS, incomplete)


def colors(incomplete: str) -> list[str]:
    """When an answer is coloured."""
    return _starting(("auto", "always", "never"), incomplete)


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    typed = incomplete.lower()
    return sorted(name for name in names if name.lower().startswith(typed))
