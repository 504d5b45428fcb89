"""``mflux-api completion``: a script that has a shell complete commands, options and their values.

The script holds all names, so a press of Tab starts no Python.
"""

import argparse
import shlex
from collections.abc import Iterator, Mapping

import attrs

from mflux_api.catalog import BUILT_IN
from mflux_api.cli.commands import build_parser

SHELLS = ("bash", "zsh", "fish")
_MODELS = ("--model",)
"""Options whose values are models."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's options."""
    parser.add_argument("shell", choices=SHELLS, help='such as: eval "$(mflux-api completion bash)"')


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    print(script(options.shell))
    return 0


@attrs.frozen
class _Option:
    names: tuple[str, ...]
    help: str
    values: tuple[str, ...]
    """What it takes, where that is known."""
    takes: bool
    """Whether it takes a value."""


@attrs.frozen
class _Node:
    """A command, or one of its own commands."""

    help: str
    options: tuple[_Option, ...]
    commands: Mapping[str, "_Node"]
    values: tuple[str, ...]
    """What its arguments may be, where that is known."""


def script(shell: str) -> str:
    """Return the script for a shell."""
    root = _node(build_parser(), "")
    return _fish(root) if shell == "fish" else _bash(root, zsh=shell == "zsh")


def _node(parser: argparse.ArgumentParser, text: str) -> _Node:
    options, commands, values = [], {}, tuple[str, ...]()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {each.dest: each.help or "" for each in action._choices_actions}
            commands = {name: _node(each, helps.get(name, "")) for name, each in action.choices.items()}
        elif action.option_strings:
            options.append(_option(action))
        elif action.choices is not None:
            values += tuple(map(str, action.choices))
        elif action.metavar == "MODEL":
            values += tuple(model.alias for model in BUILT_IN)
    return _Node(text, tuple(options), commands, values)


def _option(action: argparse.Action) -> _Option:
    values = tuple(map(str, action.choices or ()))
    if any(name in _MODELS for name in action.option_strings):
        values = tuple(model.alias for model in BUILT_IN)
    return _Option(tuple(action.option_strings), action.help or "", values, action.nargs != 0)


def _paths(node: _Node, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], _Node]]:
    yield path, node
    for name, each in node.commands.items():
        yield from _paths(each, (*path, name))


def _bash(root: _Node, *, zsh: bool) -> str:
    groups = " ".join(name for name, node in root.commands.items() if node.commands)
    cases, values = [], []
    for path, node in _paths(root):
        key = " ".join(path)
        names = " ".join(name for option in node.options for name in option.names)
        words = " ".join((*node.commands, *node.values))
        cases.append(f"        {shlex.quote(key)}) words={shlex.quote(words)}; options={shlex.quote(names)} ;;")
        values += [
            f"        {'|'.join(shlex.quote(f'{key} {name}') for name in option.names)}) "
            f"values={shlex.quote(' '.join(option.values))} ;;"
            for option in node.options
            if option.values
        ]
    head = ["autoload -U +X bashcompinit && bashcompinit"] if zsh else []
    return "\n".join(
        [
            *head,
            "_mflux_api() {",
            '    local cur="${COMP_WORDS[COMP_CWORD]}" prev="${COMP_WORDS[COMP_CWORD-1]}"',
            '    local key="" words="" options="" values="" i',
            "    for ((i = 1; i < COMP_CWORD; i++)); do",
            '        case "${COMP_WORDS[i]}" in',
            "            -*) ;;",
            '            *) if [[ -z $key ]]; then key="${COMP_WORDS[i]}"',
            f'               elif [[ " {groups} " == *" $key "* ]]; then key="$key ${{COMP_WORDS[i]}}"; break',
            "               else break; fi ;;",
            "        esac",
            "    done",
            '    case "$key" in',
            *cases,
            "    esac",
            '    case "$key $prev" in',
            *values,
            "    esac",
            '    if [[ -n $values ]]; then COMPREPLY=($(compgen -W "$values" -- "$cur"))',
            '    elif [[ $cur == -* ]]; then COMPREPLY=($(compgen -W "$options" -- "$cur"))',
            '    else COMPREPLY=($(compgen -W "$words" -- "$cur")); fi',
            "}",
            "complete -o default -F _mflux_api mflux-api",
        ]
    )


def _fish(root: _Node) -> str:
    lines = []
    for path, node in _paths(root):
        here = _fish_condition(path, node)
        for name, each in node.commands.items():
            lines.append(_fish_line(here, f"-f -a {name}", each.help))
        if node.values:
            lines.append(_fish_line(here, f"-a {shlex.quote(' '.join(node.values))}", ""))
        for option in node.options:
            names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
            takes = " -r" if option.takes else ""
            values = f" -f -a {shlex.quote(' '.join(option.values))}" if option.values else ""
            lines.append(_fish_line(here, f"{names}{takes}{values}", option.help))
    return "\n".join(lines)


def _fish_condition(path: tuple[str, ...], node: _Node) -> str:
    if not path:
        return "__fish_use_subcommand"
    seen = "; and ".join(f"__fish_seen_subcommand_from {name}" for name in path)
    return f"{seen}; and not __fish_seen_subcommand_from {' '.join(node.commands)}" if node.commands else seen


def _fish_line(condition: str, what: str, text: str) -> str:
    described = f" -d {shlex.quote(text)}" if text else ""
    return f"complete -c mflux-api -n {shlex.quote(condition)} {what}{described}"
