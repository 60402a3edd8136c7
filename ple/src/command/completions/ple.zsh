#compdef ple
# Completions of ple for zsh.
_ple() {
  local cur=$words[CURRENT] flag= at between=0
  local -a commands verbs flags words_
  if (( CURRENT == 2 )); then
    commands=(@commands@)
    _describe command commands
    return
  fi
  case $words[2] in
@cases@
  esac
  # The flag that the word belongs to: the nearest before it.
  for (( at = CURRENT - 1; at > 2; at-- )); do
    if [[ $words[at] == --* ]]; then
      flag=--${${words[at]#--}//-/_}
      break
    fi
    (( between++ ))
  done
  case $flag in
    @lists@) ;;
    *) (( between > 0 )) && flag=none ;;
  esac
  case $flag in
@values@
  esac
  (( $#words_ )) && compadd -a words_
  case $flag in
    '') (( CURRENT == 3 && $#verbs )) && compadd -a verbs; [[ $cur != -* ]] && _files; _describe setting flags ;;
    none|--no_*|@switches@|@lists@) _describe setting flags ;;
    *) if [[ $cur == -* ]]; then _describe setting flags; elif (( ! $#words_ )); then _files; fi ;;
  esac
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _ple "$@"; else compdef _ple ple; fi
