# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin completion SHELL`: a script that completes verbs and options.

Owns the scripts; their words are the parser's own, so that they are never behind it.
"""

from __future__ import annotations

import argparse

HELP = "print a script that completes verbs and options in a shell"
DESCRIPTION = """\
Print a script for bash, zsh or fish that completes verbs and their options, and
files elsewhere. It is made from the verbs of this version."""
EXAMPLES = """\
examples:
  warmup-plugin completion bash                   to eval in .bashrc
  warmup-plugin completion zsh                    to eval in .zshrc
  warmup-plugin completion fish                   to source in config.fish
"""

_BASH = """\
_warmup_plugin() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} verb="" each
    for each in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case $each in -*) ;; *) verb=$each; break ;; esac
    done
    case $verb in
{cases}
    *) COMPREPLY=($(compgen -W "{verbs}" -- "$word")); return ;;
    esac
    case $word in
    -*) COMPREPLY=($(compgen -W "$words" -- "$word")) ;;
    *) COMPREPLY=($(compgen -f -- "$word")) ;;
    esac
}}
complete -o filenames -F _warmup_plugin warmup-plugin
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="for which shell")


def run(*, shell: str) -> int:
    """Print the script."""
    from warmup_plugin.cli.parser import make_parser, options_of, verbs_of

    parsers = verbs_of(make_parser())
    words = {verb: options_of(parser) for verb, parser in parsers.items()}
    if shell == "fish":
        print("\n".join(_fish(words)))
        return 0
    if shell == "zsh":
        print("autoload -U +X bashcompinit && bashcompinit")
    cases = "\n".join(
        f'    {verb}) local words="{" ".join(names)}" ;;' for verb, names in words.items()
    )
    print(_BASH.format(cases=cases, verbs=" ".join(words)), end="")
    return 0


def _fish(words: dict[str, list[str]]) -> list[str]:
    lines = [f"complete -c warmup-plugin -n __fish_use_subcommand -f -a '{' '.join(words)}'"]
    for verb, names in words.items():
        when = f"-n '__fish_seen_subcommand_from {verb}'"
        for name in names:
            kind = f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
            lines.append(f"complete -c warmup-plugin {when} {kind}")
    return lines
