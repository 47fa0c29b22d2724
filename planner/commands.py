"""The commands that run a model on a machine: of the engine that was picked, or of every engine that can."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import Any

from estimators.deployment import Deployment
from planner import answer, engines
from planner.engines.command import Command
from planner.errors import NothingFits, PlanError
from planner.request import Request


@dataclass(frozen=True)
class Offer:
    """One engine's command for its best deployment, or why it has none."""

    engine: str
    command: Command | None
    deployment: Deployment | None
    refusal: str = ""


def find(request: Request, every: bool) -> tuple[Offer, ...]:
    """Offers, the picked engine first. Errors: NothingFits when no engine offers anything."""
    offers = [_offer(request, None)]
    if every:
        picked = offers[0].engine
        offers += [
            _offer(replace(request, engines=(name,)), name) for name in engines.names() if name != picked
        ]
    if not any(offer.command for offer in offers):
        name = ", ".join(request.models)
        raise NothingFits(f"{name}: {offers[0].refusal}", f"plan why {name} ... says what would change that")
    return tuple(offers)


def _offer(request: Request, name: str | None) -> Offer:
    try:
        found = answer.of_model(request)
    except PlanError as error:
        return Offer(name or "", None, None, error.message)
    if found is None:
        return Offer(
            name or "", None, None, f"{name} cannot load it here" if name else "no engine can load it here"
        )
    target, row, near, holds = found
    deployment = answer.deployment(request, row, target.machine)
    engine = engines.get(row.engine)
    refusal = engine.refuses(deployment)
    if refusal:
        return Offer(row.engine, None, deployment, refusal)
    if not holds:
        return Offer(row.engine, None, deployment, near[0].lacks if near else "it does not hold the limits")
    return Offer(row.engine, engine.command(deployment), deployment)


def text(offers: tuple[Offer, ...]) -> str:
    """Each command with the reason of every flag, files to write and notes; refusals at the end."""
    parts = []
    for offer in offers:
        if offer.command is None or offer.deployment is None:
            continue
        command, scheme = offer.command, offer.deployment.scheme
        what = f"{offer.deployment.model.id} {scheme.label or scheme.id}"
        lines = [f"# {engines.get(offer.engine).TITLE}: {what}"]
        for name, content in command.files:
            lines += [f"# write {name}:", *(f"#   {line}" for line in content.splitlines())]
        lines += [shlex.join(words) for words in command.prepare]
        lines.append(command.line())
        lines += [f"#   {what}: {reason}" for what, reason in command.reasons()]
        lines += [f"# {note}" for note in command.notes]
        parts.append("\n".join(lines))
    refused = [f"# {offer.engine}: {offer.refusal}" for offer in offers if offer.command is None]
    return "\n\n".join([*parts, *(["\n".join(refused)] if refused else [])]) + "\n"


def document(offers: tuple[Offer, ...]) -> list[dict[str, Any]]:
    """The offers as JSON values."""
    return [
        {
            "engine": offer.engine,
            "refusal": offer.refusal,
            **(
                {
                    "argv": offer.command.argv(),
                    "line": offer.command.line(),
                    "environment": {v.name: v.value for v in offer.command.environment},
                    "reasons": [list(pair) for pair in offer.command.reasons()],
                    "files": [list(pair) for pair in offer.command.files],
                    "prepare": [list(words) for words in offer.command.prepare],
                    "notes": list(offer.command.notes),
                }
                if offer.command
                else {}
            ),
        }
        for offer in offers
    ]
