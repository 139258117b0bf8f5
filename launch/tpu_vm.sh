#!/usr/bin/env bash
# Train on Cloud TPU VMs, on one slice or several, and start again after a preemption.
#
#   launch/tpu_vm.sh COMMAND --name=N --project=P --zone=Z [OPTION...] [-- FLAG OF seed_jax.main...]
#
# Commands
#   run      everything: ask for the TPU if it is not there, install, train on all hosts, follow the log; start again
#            after exit code 75, a preemption or a failure. Given again, it follows the training that is going on.
#   create   ask for the TPU and wait until it is there
#   logs     follow the log of the first host
#   status   show the state of the TPU and of the training
#   stop     save and end the training, keep the TPU (which goes on costing)
#   delete   give the TPU back
# Options
#   --name, --project, --zone     project and zone default to CLOUDSDK_CORE_PROJECT and CLOUDSDK_COMPUTE_ZONE
#   --accelerator=v5e-64          or v4-N, v5p-N, v6e-N, or a topology as in `seed-jax plan`: v5e:8x8
#   --num-slices=1                slices of that accelerator; give the training --config.mesh.replica=N with it
#   --spot, --reserved            cheaper and preemptible; from a reservation
#   --direct                      create TPU VMs at once instead of queueing for them (one slice only)
#   --env-file=FILE               NAME=VALUE lines for the training's environment (keys and the like)
#   --extras=tpu                  extras of setup.py to install; tpu,demo for the :tiny configs
#   --wait-minutes=1440           how long to queue
#   --max-preemptions=100         how often to start again after exit code 75 or a preemption
#   --max-failures=3              how often to start again after any other exit code but 0 and 2
#   --delete-after                give the TPU back when the training has ended, however it ended
#   --create-flags, --ssh-flags   further flags for gcloud, e.g. --ssh-flags='--tunnel-through-iap'
#   --runtime=VERSION             another image than the usual one
#   --poll=30                     seconds between two looks at the state
#   --dry-run                     print the commands instead of running them
# Exit code: 0 trained or stopped, 2 bad input, 75 preempted too often, 1 anything else.
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=launch/tpu_gcloud.sh
. "$root/launch/tpu_gcloud.sh"

name='' project=${CLOUDSDK_CORE_PROJECT-} zone=${CLOUDSDK_COMPUTE_ZONE-} accelerator='' num_slices=1
spot='' reserved='' direct='' env_file='' extras=tpu wait_minutes=1440 max_preemptions=100 max_failures=3
delete_after='' create_flags='' ssh_flags='' runtime='' poll=30
save_seconds=600 # how long a save may take, and how long the other hosts may live on after the first
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

read_options() {
  parse 'name project zone accelerator num-slices env-file extras wait-minutes max-preemptions max-failures
    create-flags ssh-flags runtime poll' 'spot reserved direct delete-after' "$@"
  need name 'a name for the TPU'
  need project 'the Google Cloud project or set CLOUDSDK_CORE_PROJECT'
  need zone 'the zone, e.g. --zone=us-west4-a, or set CLOUDSDK_COMPUTE_ZONE'
  whole num-slices wait-minutes max-preemptions max-failures
  file env-file
  [ -z "$direct" ] || [ "$num_slices" = 1 ] ||
    die "--direct creates one slice: leave it out for --num-slices=$num_slices."
  [ -z "$spot" ] || [ -z "$reserved" ] || die "--spot and --reserved exclude each other: give one."
  kind=queued-resources state_field=state.state
  [ -z "$direct" ] || kind=tpu-vm state_field=state
  where=(--project="$project" --zone="$zone")
  read -r -a ssh_extra <<<"$ssh_flags"
  read -r -a create_extra <<<"$create_flags"
}

read_accelerator() {
  need accelerator 'what to train on, e.g. --accelerator=v5e-64'
  accelerator "$accelerator"
  shape=(--accelerator-type="$cloud_type")
  [ -n "$usual" ] || shape=(--type="$generation" --topology="$topology")
  # https://cloud.google.com/tpu/docs/runtimes
  case $generation in
    v4) runtime=${runtime:-tpu-ubuntu2204-base} ;;
    v5e) runtime=${runtime:-v2-alpha-tpuv5-lite} ;;
    v5p) runtime=${runtime:-v2-alpha-tpuv5} ;;
    v6e) runtime=${runtime:-v2-alpha-tpuv6e} ;;
  esac
}

# Copy the checkout, as it is here, to all hosts and install it, unless a training is running there.
install_checkout() {
  local files=("$scratch/seed_jax.tar.gz") hosts=(--worker=all) worker='bash seed_jax/launch/worker.sh'
  [ -n "$direct" ] || hosts+=(--node=all)
  run env COPYFILE_DISABLE=1 tar -C "$root" --exclude=__pycache__ -czf "${files[0]}" \
    setup.py pyproject.toml README.md LICENSE seed_jax configs launch || return
  if [ -n "$env_file" ]; then
    (umask 077 && cat "$env_file" >"$scratch/seed_jax.env")
    files+=("$scratch/seed_jax.env")
  fi
  tpu scp "${files[@]}" "$name:" "${where[@]}" "${hosts[@]}" --scp-flag=-p ${ssh_extra[@]+"${ssh_extra[@]}"} || return
  local unpack='mkdir -p seed_jax && tar -xzf seed_jax.tar.gz -C seed_jax'
  on all "$worker running 2>/dev/null || { $unpack && $worker install $extras; }"
}

# Start the training on all hosts; count them.
start() {
  local flag command='bash seed_jax/launch/worker.sh start'
  for flag in "${training[@]}"; do command+=" $(quote "$flag")"; done
  on all "$command" >"$scratch/replies" || return
  started=$(grep -c '^seed_jax start' "$scratch/replies" || true)
  if grep -q 'runs already' "$scratch/replies"; then
    say 'a training is running there: following that one, with its flags'
  fi
}

# Follow the log until the training ends or the TPU is taken away; a lost connection is taken up again.
follow() {
  local lines=+1
  until on 0 "bash seed_jax/launch/worker.sh logs $lines"; do
    [ "$(state)" = ready ] || return 0
    say 'the connection was lost; the training goes on'
    lines=10
    sleep "$poll"
  done
}

# Print how the training ended on all hosts.
collect() {
  local codes=()
  on all "bash seed_jax/launch/worker.sh wait $save_seconds" >"$scratch/replies" || true
  read -r -a codes <<<"$(sed -n 's/^seed_jax exit //p' "$scratch/replies" | tr '\n' ' ')"
  # A host that does not answer counts as failed.
  while [ ${#codes[@]} -lt "$started" ]; do codes+=(137); done
  outcome ${codes[@]+"${codes[@]}"}
}

# end CODE SENTENCE
end() {
  say "$2"
  if [ -n "$delete_after" ]; then delete; else say "$name is still there: $0 delete gives it back"; fi
  exit "$1"
}

train() {
  local failures=0 preemptions=0 ended started
  trap 'say "the training goes on; run follows it again, stop saves and ends it, delete gives $name back"; exit 130' INT
  while true; do
    ensure_ready
    ended=failed started=0
    if install_checkout && start; then
      follow
      ended=$(collect)
    fi
    case $ended in
      finished) end 0 'trained' ;;
      stopped) end 0 'saved and stopped' ;;
      bad_input) end 2 'the training refused its input (exit code 2); its sentence stands in the log above' ;;
      failed) [ "$(state)" = ready ] || ended=preempted ;;
    esac
    if [ "$ended" = failed ]; then
      failures=$((failures + 1))
      [ $failures -le "$max_failures" ] || end 1 "failed $failures times (--max-failures=$max_failures)"
    else
      preemptions=$((preemptions + 1))
      [ $preemptions -le "$max_preemptions" ] ||
        end 75 "preempted $preemptions times (--max-preemptions=$max_preemptions)"
    fi
    say "$ended; starting again (failures $failures/$max_failures, preemptions $preemptions/$max_preemptions)"
    sleep "$poll"
  done
}

# What train does when the TPU is not there and nothing goes wrong.
show_train() {
  local started
  create
  echo "# look at the state every $poll s until it is ready, for $wait_minutes min at most"
  install_checkout
  start
  on 0 'bash seed_jax/launch/worker.sh logs +1'
  collect >/dev/null
  echo "# 0 or 2: end; 75 or preempted: again, $max_preemptions times at most; else: again, $max_failures times at most"
  [ -z "$delete_after" ] || delete
}

command=${1-}
case $command in
  --help) help ;;
  run | create | logs | status | stop | delete) shift ;;
  *) die "'$command' is not a command: expected run, create, logs, status, stop or delete (see --help)." ;;
esac
read_options "$@"
case $command in
  run)
    read_accelerator
    check_training '-- --config=configs/pretrain.py:8b --workdir=gs://bucket/run' '(gs://|/)' \
      '--workdir must be gs://... or the absolute path of a file system that all hosts mount.'
    if [ -n "$dry_run" ]; then show_train; else train; fi
    ;;
  create)
    read_accelerator
    if [ -n "$dry_run" ]; then create; else ensure_ready; fi
    ;;
  logs) on 0 'bash seed_jax/launch/worker.sh logs +1' ;;
  status)
    tpu describe "$name" "${where[@]}" --format="value($state_field)"
    on all 'bash seed_jax/launch/worker.sh status'
    ;;
  stop) on all "bash seed_jax/launch/worker.sh stop $save_seconds" ;;
  delete) delete ;;
esac
