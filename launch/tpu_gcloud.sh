# What launch/tpu_vm.sh says to gcloud. Reads its options, kind (queued-resources or tpu-vm), state_field, where, shape.
# shellcheck shell=bash
# shellcheck disable=SC2154  # set by the script that sources this file

tpu() { run gcloud compute tpus "$kind" "$@"; }

# Print the state of the TPU: none, pending, ready or gone.
state() {
  local answer attempt
  for attempt in 1 2 3 4 5; do
    if answer=$(tpu describe "$name" "${where[@]}" --format="value($state_field)" 2>"$scratch/error"); then
      case $answer in
        ACTIVE | READY) echo ready ;;
        SUSPENDED | FAILED | PREEMPTED | TERMINATED | STOPPED) echo gone ;;
        *) echo pending ;;
      esac
      return
    fi
    if grep -q NOT_FOUND "$scratch/error"; then
      echo none
      return
    fi
    [ "$attempt" = 5 ] || sleep "$poll"
  done
  say "gcloud does not tell the state of $name: $(tail -n 1 "$scratch/error")"
  return 1
}

create() {
  local request=("$name" "${where[@]}" "${shape[@]}" --quiet)
  if [ -n "$direct" ]; then
    request+=(--version="$runtime")
  elif [ "$num_slices" = 1 ]; then
    request+=(--runtime-version="$runtime" --node-id="$name")
  else
    request+=(--runtime-version="$runtime" --node-count="$num_slices" --node-prefix="$name")
  fi
  [ -z "$spot" ] || request+=(--spot)
  [ -z "$reserved" ] || request+=(--reserved)
  tpu create "${request[@]}" ${create_extra[@]+"${create_extra[@]}"}
}

delete() {
  local force=(--quiet)
  [ -n "$direct" ] || force+=(--force) # the nodes with the queued resource
  tpu delete "$name" "${where[@]}" "${force[@]}"
}

give_up() {
  say "$1"
  exit 1
}

# Create the TPU unless it is there, and wait for it.
ensure_ready() {
  local now before='' created=0 deadline=$((SECONDS + wait_minutes * 60))
  while now=$(state) && [ "$now" != ready ]; do
    [ "$now" = "$before" ] || say "$name is $now"
    before=$now
    if [ "$now" = gone ]; then delete || say "gcloud could not delete $name"; fi
    if [ "$now" != pending ]; then
      created=$((created + 1))
      [ $created -le 3 ] || give_up "$name could not be had in 3 attempts; see: gcloud compute tpus $kind list"
      create || say "gcloud could not create $name (attempt $created of 3)"
    fi
    [ $SECONDS -lt $deadline ] ||
      give_up "$name is not there after $wait_minutes minutes; it stays queued until deleted"
    sleep "$poll"
  done
  [ "$now" = ready ]
}

# on 0|all COMMAND: run a command on the first host or on all hosts of all slices.
on() {
  local hosts=(--worker="$1")
  [ -n "$direct" ] || hosts+=(--node="$1")
  # Without a sign of life now and then, the log of a host that is gone would be followed for ever.
  tpu ssh "$name" "${where[@]}" "${hosts[@]}" ${ssh_extra[@]+"${ssh_extra[@]}"} \
    --ssh-flag=-oServerAliveInterval=30 --command="$2"
}
