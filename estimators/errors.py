"""Errors of the estimators; each message is the sentence a user will read."""

from __future__ import annotations


class CannotPrice(ValueError):
    """Nothing is known that a price could start from (a device without bandwidth, say)."""
