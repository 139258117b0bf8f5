#!/usr/bin/env bash
# Serve a model from a TPU VM of one host: create it, install this checkout there, and start `seed-jax serve`.
#
#   launch/serve_tpu_vm.sh COMMAND --name=N [OPTION...] [-- FLAG OF seed-jax serve...]
#
# Commands
#   run      create the TPU if it is not there, install this checkout, start the server
#   logs     follow the server's log
#   status   show the TPU's state, and whether the server runs
#   tunnel   make the server reachable at http://127.0.0.1:8000 while the command runs (it listens on its own host only)
#   stop     end the server (SIGTERM: running answers are finished)
#   delete   give the TPU back
# Options
#   --name --project --zone       of the TPU (project and zone also from CLOUDSDK_CORE_PROJECT, CLOUDSDK_COMPUTE_ZONE)
#   --accelerator=v5e-1           a slice of one host: v5e-1, v5e-4, v5e-8, v6e-1, ...; give the server
#                                 --tensor-parallel=N to use N chips
#   --models=gs://BUCKET/FOLDER   copied to models/ in the checkout; the server's --model is below it: --model=models/seed_llama_8b
#   --env-file                    file of environment variables for the server, such as SEED_JAX_API_KEY
#   --spot                        create a Spot TPU
#   --dry-run                     print the commands instead of running them
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

name='' project=${CLOUDSDK_CORE_PROJECT-} zone=${CLOUDSDK_COMPUTE_ZONE-} accelerator='' models='' env_file='' spot=''

read_options() {
  parse 'name project zone accelerator models env-file' \
    'spot' "$@"
  need name 'a name for the TPU'
  need project 'the Google Cloud project or set CLOUDSDK_CORE_PROJECT'
  need zone 'the zone, e.g. --zone=us-west4-a, or set CLOUDSDK_COMPUTE_ZONE'
  file env-file
  where=(--project="$project" --zone="$zone")
  [ -n "$dry_run" ] || scratch=$(mktemp -d) && trap 'rm -rf ${scratch:+"$scratch"}' EXIT
  scratch=${scratch-/tmp/seed_jax}
}

read_server() {
  need accelerator 'what to serve on, e.g. --accelerator=v5e-1'
  accelerator "$accelerator"
  [ "$hosts" = 1 ] || die "--accelerator=$accelerator has $hosts hosts: a server uses one, give a smaller slice."
  [[ " ${training[*]-} " =~ \ --model[=\ ] ]] ||
    die "--model is missing: give the server's flags behind --, for example -- --model=models/seed_llama_8b"
}

tpu() { run gcloud compute tpus tpu-vm "$@"; }
on() { tpu ssh "$name" "${where[@]}" --worker=0 --command="$1"; }

serve() {
  local flag command='bash seed_jax/launch/worker.sh serve' archive="$scratch/seed_jax.tar.gz" files extra=()
  # As launch/tpu_vm.sh creates it, and waits for it.
  [ -z "$spot" ] || extra+=(--spot)
  [ -z "$dry_run" ] || extra+=(--dry-run)
  "$root/launch/tpu_vm.sh" create --name="$name" "${where[@]}" --accelerator="$accelerator" --direct \
    ${extra[@]+"${extra[@]}"}
  files=("$archive")
  run env COPYFILE_DISABLE=1 tar -C "$root" --exclude=__pycache__ -czf "$archive" \
    setup.py pyproject.toml README.md LICENSE seed_jax configs launch
  if [ -n "$env_file" ]; then
    [ -n "$dry_run" ] || (umask 077 && cat "$env_file" >"$scratch/seed_jax.env")
    files+=("$scratch/seed_jax.env")
  fi
  tpu scp "${files[@]}" "$name:" "${where[@]}" --worker=0 --scp-flag=-p
  on 'mkdir -p seed_jax && tar -xzf seed_jax.tar.gz -C seed_jax && bash seed_jax/launch/worker.sh install tpu,serve,decoder'
  [ -z "$models" ] || on "mkdir -p seed_jax/models && gcloud storage rsync --recursive $(quote "$models") seed_jax/models"
  for flag in "${training[@]}"; do command+=" $(quote "$flag")"; done
  on "$command"
}

command=${1-}
case $command in
  --help) help ;;
  run | logs | status | tunnel | stop | delete) shift ;;
  *) die "'$command' is not a command: expected run, logs, status, tunnel, stop or delete (see --help)." ;;
esac
read_options "$@"
case $command in
  run)
    read_server
    serve
    ;;
  logs) on 'bash seed_jax/launch/worker.sh logs +1' ;;
  status)
    tpu describe "$name" "${where[@]}" --format='value(state)'
    on 'bash seed_jax/launch/worker.sh status'
    ;;
  tunnel) tpu ssh "$name" "${where[@]}" --worker=0 -- -N -L 8000:127.0.0.1:8000 ;;
  stop) on 'bash seed_jax/launch/worker.sh stop 60' ;;
  delete) tpu delete "$name" "${where[@]}" --quiet ;;
esac
