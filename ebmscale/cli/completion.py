"""Completion in bash of words with `=` and `:`, at which bash itself splits a word.

Click asks bash for its words, so `preset:dig` would be three of them. This class reads the line instead, and answers
with what follows the last such character, because that is what bash replaces.
"""

import os
import re

from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string

_SOURCE = """\
%(complete_func)s() {
    local IFS=$'\\n' type value completion
    COMPREPLY=()
    for completion in $(env COMP_LINE="${COMP_LINE:0:$COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \\
            %(complete_var)s=bash_complete $1); do
        IFS=',' read -r type value <<< "$completion"
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value"); [[ $value == *= ]] && compopt -o nospace ;;
        esac
    done
    return 0
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


@add_completion_class
class LineComplete(BashComplete):
    """Completion by the line up to the cursor."""

    name = "bash"
    source_template = _SOURCE

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one at the cursor, and that one."""
        line = os.environ["COMP_LINE"]
        _, *words = split_arg_string(line)
        return (words, "") if line[-1:].isspace() or not words else (words[:-1], words[-1])

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """What may follow, without what bash takes for earlier words."""
        breaks = "".join(one for one in ":=" if one in os.environ.get("COMP_WORDBREAKS", ":="))
        kept = re.match(f".*[{breaks}]", incomplete) if breaks else None
        items = super().get_completions(args, incomplete)
        for item in items:
            if kept is not None and item.type == "plain":
                item.value = item.value.removeprefix(kept.group())
        return items
