"""Level 6: completion for bash and zsh, written from the option table."""

from __future__ import annotations

from collections.abc import Sequence

from .jobs import COMMANDS
from .options import OPTIONS, Option, Takes

SHELLS = ("bash", "zsh")

_SCRIPT = """\
_zlaunch() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" pairs=no i=2
    # bash parts a word at each = and :, so that --view=pl is three words; zsh does not.
    [[ "$before" == "=" ]] && before="${{COMP_WORDS[COMP_CWORD-2]}}"
    if (( COMP_CWORD == 1 )); then
        COMPREPLY=( $(compgen -W "run ps attach logs stop info completion --help --version" -- "$word") ); return
    fi
    case "${{COMP_WORDS[1]}}" in
        info) COMPREPLY=( $(compgen -W "--json --help" -- "$word") ); return ;;
{jobs}
        completion) COMPREPLY=( $(compgen -W "bash zsh --help" -- "$word") ); return ;;
        help) COMPREPLY=( $(compgen -W "run ps attach logs stop info completion" -- "$word") ); return ;;
        run) ;;
        *) return ;;
    esac
    # Options end at the command: from there on, files are completed.
    while (( i < COMP_CWORD )); do
        case "${{COMP_WORDS[i]}}" in
            --) break ;;
            {valued}) [[ "${{COMP_WORDS[i+1]}}" == "=" ]] && (( i += 1 )); (( i += 2 )); pairs=no ;;
            {pairs}) (( i += 2 )); pairs=yes ;;
            {maybe}) [[ "${{COMP_WORDS[i+1]}}" == -* ]] || (( i += 1 )); (( i += 1 )); pairs=no ;;
            -*) (( i += 1 )); pairs=no ;;
            *) [[ $pairs == yes && "${{COMP_WORDS[i]}}${{COMP_WORDS[i+1]}}" == *=* ]] || break; (( i += 1 )) ;;
        esac
        while (( i < COMP_CWORD )) && [[ "${{COMP_WORDS[i]}}" == [=:] ]]; do (( i += 2 )); done
    done
    case "$before" in
{choices}
    esac
    if (( i == COMP_CWORD )) && [[ "$word" == -* ]]; then
        COMPREPLY=( $(compgen -W "{names}" -- "$word") ); return
    fi
    COMPREPLY=( $(compgen -f -- "$word") )
}}
complete -o filenames -o bashdefault -F _zlaunch zlaunch
"""


def script(shell: str) -> str:
    """What ``eval "$(zlaunch completion SHELL)"`` evaluates. zsh reads bash's completions by itself."""
    taking = {takes: "|".join(n for o in OPTIONS if o.takes is takes for n in o.names) for takes in Takes}
    names = [name for option in OPTIONS for name in option.names]
    jobs = [
        f"        {name})\n"
        f'            case "$before" in\n{_choices(command.options)}\n            esac\n'
        f'            COMPREPLY=( $(compgen -W "{" ".join(n for o in command.options for n in o.names)} --help" '
        '-- "$word") ); return ;;'
        for name, command in COMMANDS.items()
    ]
    text = _SCRIPT.format(
        valued=taking[Takes.ONE],
        pairs=taking[Takes.PAIRS],
        maybe=taking[Takes.MAYBE],
        names=" ".join(names),
        choices=_choices(OPTIONS),
        jobs="\n".join(jobs),
    )
    return f"autoload -U +X bashcompinit && bashcompinit\n{text}" if shell == "zsh" else text


def _choices(options: Sequence[Option]) -> str:
    """The cases of options that take one of several words."""
    return "\n".join(
        f"        {'|'.join(option.names)}) "
        f'COMPREPLY=( $(compgen -W "{" ".join(option.choices)}" -- "$word") ); return ;;'
        for option in options
        if option.choices
    )
