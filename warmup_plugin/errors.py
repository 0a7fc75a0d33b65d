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
    """The session cannot open or go on, and every rank lives; raised on every rank alike."""


class RefusedError(SessionError):
    """The ranks do not fit together, as their first meeting finds: nothing has been done yet."""


class ForwardError(SessionError):
    """Another rank's forward has failed; that rank raises what its forward raised."""


class LateError(WarmupError):
    """One rank's failure after the last record: the others serve already what all agreed on."""


class InstallError(WarmupError):
    """FlashInfer does not take the table; the session goes on without it, on all ranks alike."""


class RankLostError(WarmupError):
    """A rank that is dead, silent or stuck; raised on every rank that is left.

    ``host``: the name of its machine, empty where that is not known.
    """

    def __init__(self, rank: int, reason: str, host: str = "") -> None:
        super().__init__(rank, reason, host)
        self.rank = rank
        self.reason = reason
        self.host = host

    def __str__(self) -> str:
        where = f" (host {self.host})" if self.host else ""
        return f"rank {self.rank} is lost{where}: {self.reason}"

    def name_host(self, host: str) -> None:
        """Say on which machine the rank was, unless that is said already."""
        self.host = self.host or host
        self.args = (self.rank, self.reason, self.host)


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
