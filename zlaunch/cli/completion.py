"""Level 6: completion for bash and zsh, written from the option table."""

from __future__ import annotations

from .jobs import COMMANDS
from .options import OPTIONS, Takes

SHELLS = ("bash", "zsh")

_SCRIPT = """\
_zlaunch() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" i=2
    if (( COMP_CWORD == 1 )); then
        COMPREPLY=( $(compgen -W "run ps attach logs stop info completion --help --version" -- "$word") ); return
    fi
    case "${{COMP_WORDS[1]}}" in
        info) COMPREPLY=( $(compgen -W "--json --help" -- "$word") ); return ;;
{jobs}
        completion) COMPREPLY=( $(compgen -W "bash zsh" -- "$word") ); return ;;
        run) ;;
        *) return ;;
    esac
    # Options end at the command: from there on, files are completed.
    while (( i < COMP_CWORD )); do
        case "${{COMP_WORDS[i]}}" in
            {valued}) (( i += 2 )) ;;
            --) break ;;
            -*) (( i += 1 )) ;;
            *) break ;;
        esac
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
    valued = [name for option in OPTIONS if option.takes is not Takes.NOTHING for name in option.names]
    names = [name for option in OPTIONS for name in option.names]
    choices = [
        f"        {'|'.join(option.names)}) "
        f'COMPREPLY=( $(compgen -W "{" ".join(option.choices)}" -- "$word") ); return ;;'
        for option in OPTIONS
        if option.choices
    ]
    jobs = [
        f"        {name}) "
        f'COMPREPLY=( $(compgen -W "{" ".join(o for one in command.options for o in one.names)} --help" -- "$word") ); '
        "return ;;"
        for name, command in COMMANDS.items()
    ]
    text = _SCRIPT.format(
        valued="|".join(valued), names=" ".join(names), choices="\n".join(choices), jobs="\n".join(jobs)
    )
    return f"autoload -U +X bashcompinit && bashcompinit\n{text}" if shell == "zsh" else text
