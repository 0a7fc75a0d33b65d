# SPDX-License-Identifier: Apache-2.0
"""The table of docs/settings.md, printed from the settings of the installed package.

    python tools/settings_page.py

`make settings-page` puts it into the page, `make docs` compares.
"""

from __future__ import annotations

from dataclasses import fields

from warmup_plugin.settings import Settings


def markdown_table() -> str:
    """Return the table as the page shows it."""
    lines = ["| variable | field | default | must be | meaning |", "|---|---|---|---|---|"]
    for row in fields(Settings):
        about = row.metadata
        default = "unset" if row.default in (None, ()) else f"`{row.default}`"
        cells = (
            f"`{about['variable']}`",
            f"`{row.name}`",
            default,
            about["rule"],
            about["meaning"],
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown_table())
