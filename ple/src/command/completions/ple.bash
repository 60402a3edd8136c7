# Completions of ple for bash.
_ple() {
  local cur=${COMP_WORDS[COMP_CWORD]} at=$((COMP_CWORD - 1)) between=0 flag= verbs= flags= words=
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W '@commands@' -- "$cur"))
    return
  fi
  case ${COMP_WORDS[1]} in
@cases@
  esac
  # The flag that the word belongs to: the nearest before it. Bash parts --key=value at the sign.
  [ "$cur" = = ] && cur=
  while [ "$at" -gt 1 ]; do
    case ${COMP_WORDS[at]} in
    =) ;;
    --*) flag=--$(printf %s "${COMP_WORDS[at]#--}" | tr - _); break ;;
    *) between=$((between + 1)) ;;
    esac
    at=$((at - 1))
  done
  case $flag in
    @lists@) ;;
    *) [ "$between" -gt 0 ] && flag=none ;;
  esac
  case $flag in
@values@
  esac
  case $flag in
    '') [ "$COMP_CWORD" -eq 2 ] && words=$verbs; words="$words $flags" ;;
    none|--no_*|@switches@|@lists@) words="$words $flags" ;;
    *) case $cur in -*) words=$flags ;; esac ;;
  esac
  [ -z "$cur" ] && [ -z "$words" ] && return
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -o default -F _ple ple
