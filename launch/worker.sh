#!/usr/bin/env bash
# What launch/tpu_vm.sh runs on each TPU host, over ssh. It works in the checkout that it lies in.
#
#   launch/worker.sh [--dry-run] COMMAND
#
#   install EXTRAS       make .venv with the extras of setup.py; does nothing where that is done
#   start FLAG...        train in the background, unless it does so already
#   serve FLAG...        the same with `seed-jax serve`
#   running              succeed while the training runs
#   logs LINES           follow the log until the training ends (LINES as `tail -n` takes them)
#   wait SECONDS         wait for the training to end, kill it after that time; print `seed_jax exit CODE`
#   stop SECONDS         ask the training to save and end (SIGTERM), kill it after that time
#   status               print one line
#   record FILE COMMAND  run a command and write its exit code to FILE (in a Slurm job, FILE and the task's number)
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/lib.sh
. launch/lib.sh

state=runs/worker # ignored by git, like all of runs/

training_pid() {
  local pid
  pid=$(cat $state/pid 2>/dev/null) || return
  # After a reboot the number may belong to another process. (`start` is what it looks like for a moment.)
  tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -q 'worker.sh \(record\|start\|serve\) ' && echo "$pid"
}

running() { training_pid >/dev/null; }

install_extras() {
  local wanted
  wanted=$({ echo "$1"; cat setup.py; } | cksum)
  [ "$wanted" != "$(cat $state/installed 2>/dev/null)" ] || return 0
  # The images of TPU VMs have Python 3.10, which is too old; uv brings a newer one where there is none.
  PATH=$HOME/.local/bin:$PATH
  command -v uv >/dev/null || PIP_BREAK_SYSTEM_PACKAGES=1 run python3 -m pip install --quiet --user uv
  run uv venv --quiet --allow-existing --python '>=3.11' .venv
  run uv pip install --quiet --python .venv/bin/python -e ".[$1]"
  [ -n "$dry_run" ] || { mkdir -p $state && echo "$wanted" >$state/installed; }
}

# start MODULE FLAG...
start() {
  local command=(bash launch/worker.sh record "$state/exit" .venv/bin/python -m "$@")
  if running; then
    echo 'seed_jax start: it runs already'
    return
  fi
  if [ -n "$dry_run" ]; then
    run "${command[@]}"
    return
  fi
  mkdir -p $state
  rm -f $state/exit $state/stopped
  [ ! -e $state/log ] || mv $state/log $state/log.previous
  if [ -e ~/seed_jax.env ]; then
    set -a
    # shellcheck source=/dev/null
    . ~/seed_jax.env
    set +a
  fi
  # A session of its own: the end of the ssh connection does not reach it.
  PYTHONUNBUFFERED=1 setsid nohup "${command[@]}" >$state/log 2>&1 </dev/null 3>&- &
  echo $! >$state/pid
  # setsid, nohup and bash replace one another in that process, which has no name in between: wait for the last.
  until ! kill -0 $! 2>/dev/null || tr '\0' ' ' 2>/dev/null <"/proc/$!/cmdline" | grep -q '^bash '; do sleep 0.05; done
  echo "seed_jax start: process $!"
}

record() {
  local file=$1${SLURM_PROCID-} code=0
  shift
  trap : TERM # the command gets the signal too; stay and see how it ends
  "$@" || code=$?
  echo "$code" >"$file.new"
  mv "$file.new" "$file"
  exit "$code"
}

# Wait until the training has ended; kill it after so many seconds.
outlast() {
  local pid deadline=$((SECONDS + $1))
  while pid=$(training_pid); do
    [ $SECONDS -lt $deadline ] || kill -KILL -- "-$pid"
    sleep 0.2
  done
}

exit_code() {
  if [ -e $state/stopped ]; then echo stopped; else cat $state/exit 2>/dev/null || echo 137; fi
}

logs() {
  local pid
  if pid=$(training_pid); then run tail -n "$1" --pid="$pid" -F $state/log; else run tail -n "$1" $state/log; fi
}

stop() {
  local pid
  pid=$(training_pid) || return 0
  touch $state/stopped
  run pkill -TERM -P "$pid" # the training alone: its data workers must live until it has saved
  run outlast "$1"
}

[ "${1-}" != --dry-run ] || { dry_run=1 && shift; }
case ${1-} in
  install) install_extras "$2" ;;
  start) shift && start seed_jax.main "$@" ;;
  serve) shift && start seed_jax.cli serve "$@" ;;
  running) running ;;
  logs) logs "$2" ;;
  wait) run outlast "$2" && run echo "seed_jax exit $(exit_code)" ;;
  stop) stop "$2" ;;
  status) if running; then echo "$(hostname): training"; else echo "$(hostname): ended, exit code $(exit_code)"; fi ;;
  record) shift && record "$@" ;;
  --help) help ;;
  *) die "${1-} is not a command of launch/worker.sh; see --help." ;;
esac
