# Shared by the scripts of this folder: options, messages, dry runs, accelerators, exit codes.
# Keeps to what the bash 3.2 of macOS knows. (Arrays that may be empty are expanded as ${a[@]+"${a[@]}"} for its sake.)
# shellcheck shell=bash
# shellcheck disable=SC2034  # the scripts that source this file read what it sets

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dry_run=''
training=() # the flags of seed_jax.main: what follows --
exec 3>&1   # where dry runs print, also where a function's output is captured

say() { echo "${0##*/}: $*" >&2; }

# Report bad input in one sentence, with the exit code that seed_jax.main uses for it.
die() {
  say "$*"
  exit 2
}

# Print the comment on top of the script.
help() {
  sed -n '2,${/^#/!q;s/^# \{0,1\}//p;}' "$0"
  exit 0
}

# Print a word so that a shell reads it as it is.
quote() {
  case $1 in
    '' | *[!A-Za-z0-9_./:=,@%+-]*) printf "'%s'" "$(printf %s "$1" | sed "s/'/'\\\\''/g")" ;;
    *) printf %s "$1" ;;
  esac
}

# Run a command, or with --dry-run print it.
run() {
  local word
  if [ -z "$dry_run" ]; then
    "$@"
  else
    { printf +; for word in "$@"; do printf ' %s' "$(quote "$word")"; done; echo; } >&3
  fi
}

# parse "OPTION..." "FLAG..." ARGUMENT...
# `--some-option=VALUE` and `--some-option VALUE` set $some_option, `--some-flag` sets $some_flag to 1.
parse() {
  local options=" ${1//$'\n'/ } " flags=" $2 dry-run " this # no option is called so
  shift 2
  while [ $# -gt 0 ]; do
    this=${1%%=*} && this=${this#--}
    if [ "$1" = -- ]; then
      shift
      training=("$@")
      return
    elif [ "$1" = --help ]; then
      help
    elif [[ $1 == "--$this" && $flags == *" $this "* ]]; then
      printf -v "${this//-/_}" 1
    elif [[ $1 == "--$this="* && $options == *" $this "* ]]; then
      printf -v "${this//-/_}" %s "${1#*=}"
    elif [[ $1 == "--$this" && $options == *" $this "* ]]; then
      [ $# -gt 1 ] || die "$1 needs a value."
      printf -v "${this//-/_}" %s "$2"
      shift
    else
      die "$1 is not an option here (see --help); the flags of the training stand behind a --."
    fi
    shift
  done
}

# need OPTION WHAT: the option has a value.
need() {
  local variable=${1//-/_}
  [ -n "${!variable}" ] || die "--$1 is missing: give $2."
}

# whole OPTION...: the options are whole numbers, positive unless they are a --max-something.
whole() {
  local option variable
  for option in "$@"; do
    variable=${option//-/_}
    [[ ${!variable} =~ ^[1-9][0-9]*$ || $option=${!variable} == max-*=0 ]] ||
      die "--$option=${!variable} is not a positive whole number."
  done
}

# file OPTION: the option is empty or names a file.
file() {
  local variable=${1//-/_}
  [ -z "${!variable}" ] || [ -f "${!variable}" ] || die "--$1=${!variable} is not a file."
}

# check_training EXAMPLE REGEX SENTENCE: the training has its two flags, and a workdir that all hosts share.
check_training() {
  local flags=" ${training[*]-} " flag
  for flag in --config --workdir; do
    [[ $flags =~ \ ${flag}[=\ ] ]] ||
      die "$flag is missing: give the flags of the training behind --, for example -- $1"
  done
  [[ $flags =~ \ --workdir[=\ ]$2 ]] || die "$3"
}

# Topologies that a number of chips stands for, of the generations with a flat and with a three-dimensional torus.
flat=' 1=1x1 4=2x2 8=2x4 16=4x4 32=4x8 64=8x8 128=8x16 256=16x16 '
cube=' 4=2x2x1 8=2x2x2 16=2x2x4 32=2x4x4 64=4x4x4 128=4x4x8 256=4x8x8 512=8x8x8 1024=8x8x16 2048=8x16x16 4096=16x16x16 '

sizes_of() {
  local entry
  for entry in $3; do printf ' %s-%s' "$1" $((${entry%%=*} * $2)); done
}

# Take an accelerator apart: v5e-64 (also v5litepod-64), v6e-64, v4-128, v5p-128 (these two count cores, two a chip),
# or, as `seed-jax plan --topology` writes it, v5e:8x8.
# Sets generation, topology, cloud_type, chips_per_host, hosts; and usual, which is empty for a topology that cloud_type
# does not imply.
accelerator() {
  local text=${1/#v5litepod-/v5e-} cores=1 table=$flat chips usual_topology
  local known="--accelerator=$1 is not known: expected v4-N, v5e-N, v5p-N, v6e-N or a topology such as v5e:8x8"
  [[ $text =~ ^(v4|v5e|v5p|v6e)[-:]([0-9]+|[0-9]+x[0-9]+(x[0-9]+)?)$ ]] || die "$known."
  generation=${BASH_REMATCH[1]} topology=${BASH_REMATCH[2]}
  case $generation in v4 | v5p) cores=2 table=$cube ;; esac
  case $text in
    *:*x*) chips=$((${topology//x/*})) ;;
    *-*x* | *:*) die "$known." ;;
    *) chips=$((topology % cores ? 0 : topology / cores)) topology='' ;;
  esac
  [[ $table =~ \ $chips=([0-9x]+)\  ]] && usual_topology=${BASH_REMATCH[1]} || usual_topology=''
  topology=${topology:-$usual_topology}
  usual=''
  [ "$topology" != "$usual_topology" ] || usual=1
  # A three-dimensional slice may have other shapes than the usual one of its size; gcloud knows which.
  [[ -n $usual && -n $topology || $table == "$cube" && $topology =~ x.*x ]] ||
    die "--accelerator=$1 is not a size of $generation: expected one of$(sizes_of "$generation" $cores "$table")."
  cloud_type=${generation/#v5e/v5litepod}-$((chips * cores))
  chips_per_host=4
  [[ $table == "$cube" || $chips -gt 8 ]] || chips_per_host=$chips
  hosts=$((chips / chips_per_host))
}

# outcome CODE...: what the exit codes of all processes of a run mean. 2 wins: starting again would not help.
outcome() {
  case " $* " in
    *' stopped '*) echo stopped ;;
    *' 2 '*) echo bad_input ;;
    *' 75 '*) echo saved ;;
    *[!0\ ]* | '  ') echo failed ;;
    *) echo finished ;;
  esac
}
