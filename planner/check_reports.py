"""The outcome of a check as text, JSON, Markdown, JUnit XML and GitHub annotations: one function each."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import groupby

from planner.check import Finding, Outcome

SIGNS = {"holds": "ok", "violated": "FAIL", "undecided": "open"}
SCHEMA_VERSION = 1


def _summary(outcome: Outcome) -> str:
    counts = {verdict: sum(f.verdict == verdict for f in outcome.findings) for verdict in SIGNS}
    return f"{counts['holds']} hold, {counts['violated']} violated, {counts['undecided']} undecided"


def text(outcome: Outcome) -> str:
    """One line per requirement, grouped by deployment, and a summary."""
    lines = []
    for name, group in groupby(outcome.findings, key=lambda f: f.deployment):
        lines.append(name)
        lines += [f"  {SIGNS[f.verdict]:<4}  {f.requirement:<14}  {f.message}" for f in group]
    return "\n".join([*lines, _summary(outcome)]) + "\n"


def as_json(outcome: Outcome) -> str:
    """Every finding with its numbers in base SI units."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "file": outcome.file,
        "verdict": outcome.verdict,
        "exit_code": outcome.exit_code,
        "findings": [asdict(f) for f in outcome.findings],
    }
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")


def markdown(outcome: Outcome) -> str:
    """A table for a pull request or a job summary."""
    rows = [
        f"| {SIGNS[f.verdict]} | {_cell(f.deployment)} | {f.requirement} | {_cell(f.message)} |"
        for f in outcome.findings
    ]
    head = [
        f"### plan check: {outcome.verdict}",
        "",
        "| | deployment | requirement | predicted |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *rows, "", _summary(outcome)]) + "\n"


def junit(outcome: Outcome) -> str:
    """One testcase per requirement; a violation is a failure, an undecided one an error."""
    from xml.etree import ElementTree as Xml

    suite = Xml.Element(
        "testsuite",
        name=f"plan check {outcome.file}",
        tests=str(len(outcome.findings)),
        failures=str(sum(f.verdict == "violated" for f in outcome.findings)),
        errors=str(sum(f.verdict == "undecided" for f in outcome.findings)),
    )
    for f in outcome.findings:
        case = Xml.SubElement(
            suite, "testcase", classname=f.deployment, name=f.requirement, file=outcome.file, line=str(f.line)
        )
        if f.verdict != "holds":
            tag = "failure" if f.verdict == "violated" else "error"
            Xml.SubElement(
                case, tag, message=f.message
            ).text = f"{outcome.file}:{f.line}:{f.column}: {f.message}"
    Xml.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + Xml.tostring(suite, encoding="unicode") + "\n"


def _escape(value: str, property_: bool = False) -> str:
    value = value.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return value.replace(":", "%3A").replace(",", "%2C") if property_ else value


def _annotation(outcome: Outcome, f: Finding) -> str:
    level = "error" if f.verdict == "violated" else "warning"
    title = _escape(f"{f.deployment}: {f.requirement} {f.verdict}", property_=True)
    place = f"file={_escape(outcome.file, property_=True)},line={f.line},col={f.column}"
    return f"::{level} {place},title={title}::{_escape(f.message)}"


def github(outcome: Outcome) -> str:
    """Workflow commands for what does not hold, and the summary as plain text."""
    lines = [_annotation(outcome, f) for f in outcome.findings if f.verdict != "holds"]
    return "\n".join([*lines, _summary(outcome)]) + "\n"


FORMATS = {"text": text, "json": as_json, "markdown": markdown, "junit": junit, "github": github}
