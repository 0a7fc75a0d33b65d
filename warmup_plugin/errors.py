# SPDX-License-Identifier: Apache-2.0
"""The errors this package raises at its users.

Owns their words: an error names a thing, the value it had and the rule it broke, and carries the
three as attributes. Refuses to stand for bad bytes on disk: those are a `table.Miss`, never an
exception. Every error survives pickling, since processes hand their failures to each other.
"""

from __future__ import annotations


class WarmupError(RuntimeError):
    """A warm-up that could not go on; the base of this package's run-time errors."""


class SessionError(WarmupError):
    """The session cannot open or go on; raised on every rank alike."""


class InstallError(WarmupError):
    """FlashInfer does not take the table; the session goes on without it, on all ranks alike."""


class RankLostError(WarmupError):
    """A rank that is dead, silent or stuck; raised on every rank that is left."""

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(rank, reason)
        self.rank = rank
        self.reason = reason

    def __str__(self) -> str:
        return f"rank {self.rank} is lost: {self.reason}"


class RuleError(ValueError):
    """A value that breaks a rule: the base of the three errors below."""

    def __init__(self, name: str, value: object, rule: str) -> None:
        # Exactly these three become `args`, since unpickling calls the class with `args`.
        super().__init__(name, value, rule)
        self.name = name
        self.value = value
        self.rule = rule

    def __str__(self) -> str:
        return f"{self.name} is {self.value!r}: must be {self.rule}"


class SettingError(RuleError):
    """A malformed setting; `variable` is the environment variable that sets it."""

    @property
    def variable(self) -> str:
        """The environment variable, also when the value came as an argument."""
        return self.name


class IdentityError(RuleError):
    """A config factor that has no canonical form; `name` is the dotted path of the factor."""


class PlacementError(RuleError):
    """A part from which no path can be made; callers go on with memory only."""
