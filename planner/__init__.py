"""From a question to a command: requests, candidates, choice, explanation, reports, checks."""

__version__ = "0.1.0"
