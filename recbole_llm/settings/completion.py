"""Shell completion: models, verbs, settings and their values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from recbole_llm.errors import InputError
from recbole_llm.settings.declarations import llm_keys, model_keys, with_choices
from recbole_llm.settings.models import model_names

SHELLS = ("bash",)
WITH_VALUE, FLAGS = ("model", "dataset", "config_files", "seeds", "baseline"), ("quiet", "help", "version")
_SCRIPT = r"""# Completion of recbole-llm: eval "$(recbole-llm completion bash)", in ~/.bashrc for every shell.
_recbole_llm() {
    local line="${COMP_LINE:0:COMP_POINT}" key="" values="" prefix="" reply
    local word="${line##*[[:space:]]}"
    COMPREPLY=()
    case "$word" in
        --*=*)
            key="${word%%=*}" word="${word#*=}"
            case "$key" in
<cases>
                *) return ;;
            esac
            [[ "$COMP_WORDBREAKS" == *=* ]] || prefix="$key="
            if [[ "$word" == *,* ]]; then prefix="$prefix${word%,*}," word="${word##*,}"; fi
            ;;
        -*) values="<keys>" ;;
        *) [[ $COMP_CWORD -eq 1 ]] && values="<verbs>" ;;
    esac
    for reply in $(compgen -W "$values" -- "$word"); do COMPREPLY+=("$prefix$reply"); done
}
complete -o default -o nospace -F _recbole_llm recbole-llm
"""


def completion(shell: str, verbs: Iterable[str]) -> str:
    """A script that lets a shell complete the words of the command.

    Args:
        shell: ``bash``.
        verbs: verbs of the command.

    Raises:
        InputError: another shell.

    Example:
        >>> "complete -o default" in completion("bash", ["import"])
        True
    """
    if shell not in SHELLS:
        raise InputError(
            "completion",
            f"there is no completion for the shell '{shell}'; give {', '.join(SHELLS)}",
            kind="unknown",
        )
    keys = {**llm_keys(), **model_keys()}
    values: dict[str, Sequence[str]] = {name: list(with_choices(key).setting.choices) for name, key in keys.items()}
    values |= {name: ["True", "False"] for name, key in keys.items() if key.types == (bool,)}
    values |= {"model": model_names(), "baseline": model_names()}
    cases = [
        f'                --{key}) values="{" ".join(found)}" ;;' for key, found in sorted(values.items()) if found
    ]
    words = [f"--{name}=" for name in sorted({*keys, *WITH_VALUE})] + [f"--{name}" for name in FLAGS]
    script = _SCRIPT.replace("<cases>", "\n".join(cases)).replace("<keys>", " ".join(words))
    return script.replace("<verbs>", " ".join(sorted(verbs)))
