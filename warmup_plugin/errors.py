# SPDX-License-Identifier: Apache-2.0
"""The errors this package raises at its users.

Owns their words: an error names a thing, its value and the rule that it breaks, and has the three
as attributes. Bad bytes on disk raise none of them: they are a `Miss`, a value with a reason. Every
error survives pickling, since processes hand their failures to each other.
"""

from __future__ import annotations

import time


class WarmupError(RuntimeError):
    """The warm-up cannot go on. This is the base of the package's run-time errors."""


class SessionError(WarmupError):
    """The session cannot open or go on, and every rank lives; every rank raises it.

    After it the ranks may warm up in another way.
    """


class RefusedError(SessionError):
    """The ranks do not fit together, as their first round shows; no file has been touched."""


class ForwardError(SessionError):
    """The forward of another rank failed; that rank raises what its forward raised."""


class LateError(WarmupError):
    """This rank failed after the last decision: the others serve the agreed table already."""


class InstallError(WarmupError):
    """FlashInfer refuses the table; the session goes on without it, on all ranks."""


class RankLostError(WarmupError):
    """A rank is dead, silent or stuck; every rank that is left raises this error.

    A collective with that rank does not end, so the process must not enter one.

    Args:
        rank: the lost rank's number in the session.
        reason: what the other ranks saw of it, and the limit that it broke.
        host: the name of its machine, empty where that is not known.
    """

    def __init__(self, rank: int, reason: str, host: str = "") -> None:
        super().__init__(rank, reason, host)
        self.rank = rank
        self.reason = reason
        self.host = host
        self._made_at = time.monotonic()

    def known_for_s(self) -> float:
        """Return for how long this process has known of it.

        Returns:
            The time since this error was made, in seconds.
        """
        return time.monotonic() - self._made_at

    def __str__(self) -> str:
        where = f" (host {self.host})" if self.host else ""
        return f"rank {self.rank} is lost{where}: {self.reason}"

    def name_host(self, host: str) -> None:
        """Add the machine on which the rank was, where the error does not have it yet.

        Args:
            host: the name of the machine.
        """
        self.host = self.host or host
        self.args = (self.rank, self.reason, self.host)


def loss_in(error: BaseException) -> RankLostError | None:
    """Return the loss that an exception tells of, or that is its cause.

    A forward raises its own error where its collective ends because a rank is lost.
    """
    if isinstance(error, RankLostError):
        return error
    return error.__cause__ if isinstance(error.__cause__, RankLostError) else None


class RuleError(ValueError):
    """A value breaks a rule. This is the base of the package's errors of values.

    Args:
        name: the argument, the environment variable or the factor.
        value: its value, as it was given.
        rule: what it must be.
    """

    def __init__(self, name: str, value: object, rule: str) -> None:
        # Exactly these three become `args`, since unpickling calls the class with `args`.
        super().__init__(name, value, rule)
        self.name = name
        self.value = value
        self.rule = rule

    def __str__(self) -> str:
        return f"{self.name} is {self.value!r}: must be {self.rule}"


class SettingError(RuleError):
    """A setting is malformed; `variable` is the environment variable that sets it."""

    @property
    def variable(self) -> str:
        """The environment variable, also when the value came as an argument."""
        return self.name


class IdentityError(RuleError):
    """A config factor has no canonical form; `name` is the dotted path of the factor."""


class PlacementError(RuleError):
    """No path can be made of a part; the session goes on in memory only."""
