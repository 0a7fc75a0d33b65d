# SPDX-License-Identifier: Apache-2.0
"""The package's lines: by part, and what each capability has added to the core.

    python tools/size.py [PACKAGE]      the folder `warmup_plugin` of this checkout by default

A capability is named for the modules that have nothing else to do: those that `ADDED` lists. The
core is the rest: what stood at 1f43ee7 (18,893 lines), however moved and split since, with what
other changes have added inside it. Ends with status 1 where `ADDED` names what is not there.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

#: By capability: the modules and packages that came with it, below the package, after 1f43ee7.
ADDED = {
    "typed votes, decisions and report rows (18)": """
        coordination/rounds coordination/votes coordination/decisions coordination/versions
        observability/report_rows""",
    "FlashInfer's real op code, evidence on a GPU (16)": """
        gpu_evidence tuner/batch_fields""",
    "two laws of failures in the engines (17)": """
        engines/attempt engines/presence engines/log_filter engines/sglang/stages steps/fallback
        runtime/needs runtime/standard_streams cache/flock coordination/roll_call
        coordination/sockets""",
    "releases of FlashInfer and of the engines (19)": """
        tuner/behaviour tuner/proven tuner/packages cache/stamps""",
    "what operators meet: verbs, long tasks, figures (20)": """
        cli/commands/completion cli/commands/config cli/commands/diff cli/commands/rm
        cli/commands/stats cli/commands/status cli/demo_clauses cli/doctor_disks cli/engines
        cli/named cli/parser cli/places cli/receipts cli/removal engines/embedded/evidence
        observability/exposition observability/gauges observability/textfile observability/pace
        runtime/compiling runtime/ticker runtime/terminal steps/turn steps/options""",
    "several hosts and networks (21)": """
        coordination/addresses coordination/connecting coordination/listeners coordination/offers
        coordination/opening cli/doctor_ranks""",
    "races, and the kept look (22)": """
        tuner/race tuner/kept_environment tuner/library_search tuner/package_names
        runtime/stand_in""",
    "the fleet (23)": """
        fleet steps/fleet cli/commands/fleet cache/image cache/image_layout cli/registry
        cli/commands/push cli/commands/pull""",
}
CORE = "the core, as of 1f43ee7"


def lines_of(package: Path) -> dict[str, int]:
    """Return how many lines each module has, by its path below the package without the ending."""
    return {
        path.relative_to(package).with_suffix("").as_posix(): len(path.read_bytes().splitlines())
        for path in sorted(package.rglob("*.py"))
    }


def capability_of(module: str) -> str:
    """Return what a module came with."""
    for name, modules in ADDED.items():
        if any(module == each or module.startswith(f"{each}/") for each in modules.split()):
            return name
    return CORE


def table(title: str, numbers: Counter[str]) -> str:
    """Return counts as text, the largest first, with their sum."""
    rows = [*numbers.most_common(), ("in all", numbers.total())]
    return "\n".join([title, *(f"{number:8,}  {name}" for name, number in rows)])


def main() -> int:
    own = Path(__file__).resolve().parent.parent / "warmup_plugin"
    package = Path(sys.argv[1]) if len(sys.argv) > 1 else own
    parts, capabilities = Counter[str](), Counter[str]()
    found = lines_of(package)
    for module, number in found.items():
        parts[module.split("/")[0] if "/" in module else "(top)"] += number
        capabilities[capability_of(module)] += number
    print(table("lines by part", parts))
    print(table("\nlines by what they came with", capabilities))
    named = [each for modules in ADDED.values() for each in modules.split()]
    gone = [each for each in named if not any(f"{m}/".startswith(f"{each}/") for m in found)]
    for each in gone:
        print(f"tools/size.py names {each}, which is not there")
    return 1 if gone else 0


if __name__ == "__main__":
    sys.exit(main())
