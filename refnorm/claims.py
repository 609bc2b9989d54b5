"""The record that every evidence script returns: a paper's central claim, checked in miniature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One checked statement.

    Parameters
    ----------
    statement
        What the paper says, or the part that the miniature can show, in one sentence.
    expected
        The margin in words, fixed before the run: ``"worst difference below 1e-12"``.
    holds
        Whether the measured figures satisfy it.
    figures
        The measured figures, by name, with the unit in the name where there is one.
    refuted
        For a claim that is known not to show in miniature: why, in one sentence. The tests then
        require ``holds`` to be False, so that the page stays true.
    """

    statement: str
    expected: str
    holds: bool
    figures: Mapping[str, float | int | str] = field(default_factory=dict)
    refuted: str = ""

    @property
    def as_stated(self) -> bool:
        """Whether the outcome is the one that the book reports."""
        return self.holds != bool(self.refuted)
