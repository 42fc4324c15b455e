# bash completion for icae: commands and options as the program itself lists them.

_icae() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} program=${COMP_WORDS[0]}
    local command=${COMP_WORDS[1]}
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ] || { [ "$command" = help ] && [ "$COMP_CWORD" -eq 2 ]; }; then
        mapfile -t COMPREPLY < <(compgen -W "$("$program" help 2>/dev/null | sed -n 's/^  \([a-z]*\) .*/\1/p')" -- "$cur")
        return
    fi
    case $prev in
    --compute)
        mapfile -t COMPREPLY < <(compgen -W "auto f32 bf16" -- "$cur")
        return
        ;;
    --color)
        mapfile -t COMPREPLY < <(compgen -W "auto always never" -- "$cur")
        return
        ;;
    --template)
        mapfile -t COMPREPLY < <(compgen -W "mistral llama2 llama3 chatml gemma phi3 icae none" -- "$cur")
        return
        ;;
    esac
    case $cur in
    -*) mapfile -t COMPREPLY < <(compgen -W "--help $("$program" help "$command" 2>/dev/null | grep -oE '^  (-., |    )--[a-z0-9-]+' | grep -oE -- '--.*')" -- "$cur") ;;
    *) compopt -o default 2>/dev/null ;;
    esac
}
complete -F _icae icae
