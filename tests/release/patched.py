# SPDX-License-Identifier: Apache-2.0
"""Copies of a FlashInfer release whose tuner somebody has changed, in ways that no release has.

Owns the changes. A copy is a folder of links to the release, but for the tuner's source; it goes
first on the import path of a child. FlashInfer itself works with each of them.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Patch:
    """What is put in place of what, once, and how the probe names what it does then."""

    before: str
    after: str
    named: str


#: What changes nothing that is relied on: a release that no test has seen, and that is used.
COMMENT = Patch('"""Choose the best runner', '"""Choose the very best runner', "")

PATCHES = {
    "an entry of five elements": Patch(
        """                    if selection is not None:
                        configs[file_key].append(selection)

        current_meta""",
        """                    if selection is not None:
                        configs[file_key].append(selection)
                        configs[file_key].append({"workspace": 4096})

        current_meta""",
        "an entry has 5 elements",
    ),
    "another field in the key": Patch(
        """            self.nearest_profile,
            self.extras,
        )""",
        """            self.nearest_profile,
            self.extras,
            "eager",
        )""",
        "winners are stored as ",
    ),
    "another vote": Patch(
        """        if self.is_tuning_mode and _tune_process_group is not None:
            _check_tuning_group_phase(
                "operation",
                (
                    "choose_one",""",
        """        if _tune_process_group is not None:
            _check_tuning_group_phase(
                "operation",
                (
                    "choose_one",""",
        "ranks meet in choose_one, where it is answered",
    ),
    "choose_one hands on": Patch(
        """    def choose_one(
        self,
        custom_op: str,""",
        """    def choose_one(self, *arguments, **options):
        return self.select(*arguments, **options)

    def select(
        self,
        custom_op: str,""",
        "another method measures: select",
    ),
    "five options": Patch(
        "(new_buckets, new_round_up, new_profile_replays, new_tie_tolerance)",
        "(new_buckets, new_round_up, new_profile_replays, new_tie_tolerance, None)",
        "a tuning context has 5 options",
    ),
}


def patched(release: Path, folder: Path, patch: Patch) -> Path:
    """Return a folder for PYTHONPATH with that FlashInfer, changed."""
    package = folder / "flashinfer"
    package.mkdir(parents=True)
    for path in (release / "flashinfer").iterdir():
        if path.name != "autotuner":
            (package / path.name).symlink_to(path)
    for path in release.iterdir():
        if path.name != "flashinfer":
            (folder / path.name).symlink_to(path)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(release / "flashinfer" / "autotuner", package / "autotuner", ignore=ignored)
    source = package / "autotuner" / "autotuner.py"
    text = source.read_text()
    assert text.count(patch.before) == 1, patch.before
    source.write_text(text.replace(patch.before, patch.after))
    return folder
