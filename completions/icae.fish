# fish completion for icae: commands and options as the program itself lists them.

function __icae_commands
    icae help 2>/dev/null | string replace -rf '^  ([a-z]+) +(.*)' '$1\t$2'
end

function __icae_options
    set -l words (commandline -opc)
    test (count $words) -ge 2; or return
    icae help $words[2] 2>/dev/null | string replace -rf '^  (?:-., |    )(--[a-z0-9-]+)(?: [A-Z]+)? +(.*)' '$1\t$2'
end

complete -c icae -n 'test (count (commandline -opc)) -eq 1' -f -a '(__icae_commands)'
complete -c icae -n '__fish_seen_subcommand_from help' -f -a '(__icae_commands)'
complete -c icae -n 'test (count (commandline -opc)) -ge 2; and string match -q -- "-*" (commandline -ct)' -f -a '(__icae_options)'
