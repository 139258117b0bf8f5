#!/usr/bin/env bash
# Train on TPU slices of a GKE cluster that has JobSet 0.10 or newer, or through xpk.
#
#   launch/gke.sh COMMAND --name=N [OPTION...] [-- FLAG OF seed_jax.main...]
#
# Commands
#   run      submit the training (kubectl apply, or xpk workload create); the cluster starts it again by itself
#   render   print the manifest that run would apply
#   logs     follow the log of the first host, from its current start
#   status   show the JobSet and its pods
#   delete   end the training (SIGTERM: it saves) and remove it; run with the same flags continues it
# Options
#   --name                        at most 40 lower-case letters, digits and dashes
#   --image                       the image of launch/docker/tpu.Dockerfile, where the cluster can pull it
#   --accelerator=v5e-64          or v4-N, v5p-N, v6e-N, or a topology as in `seed-jax plan`: v5e:8x8
#   --num-slices=1                slices of that accelerator; give the training --config.mesh.replica=N with it
#   --namespace=default --queue   Kubernetes namespace; Kueue's LocalQueue, where the cluster has one
#   --spot                        only on Spot nodes
#   --secret=NAME                 Kubernetes Secret for the training's environment, made by
#                                 kubectl create secret generic NAME --from-env-file=FILE
#   --max-failures=3              how often to start again after an exit code other than 0, 2 and 75
#   --xpk --cluster --project --zone [--env-file=FILE]
#                                 submit and delete through xpk; there exit code 75 counts as a failure too
#   --dry-run                     print the commands instead of running them
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

name='' image='' accelerator='' num_slices=1 namespace=default queue='' spot='' secret='' max_failures=3
xpk='' cluster='' project=${CLOUDSDK_CORE_PROJECT-} zone=${CLOUDSDK_COMPUTE_ZONE-} env_file=''

read_options() {
  parse 'name image accelerator num-slices namespace queue secret max-failures cluster project zone env-file' \
    'spot xpk' "$@"
  need name 'a name for the training'
  [[ $name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] || # JobSet makes longer names of it, of at most 63 characters
    die "--name=$name is not possible: at most 40 lower-case letters, digits and dashes, a letter first."
  if [ -n "$xpk" ]; then
    need cluster 'the GKE cluster'
    need project 'the Google Cloud project or set CLOUDSDK_CORE_PROJECT'
    need zone 'the zone of the cluster or set CLOUDSDK_COMPUTE_ZONE'
    [ -z "$secret" ] || die '--secret does not work with --xpk: give --env-file.'
    [ -z "$queue$spot" ] || die '--queue and --spot do not work with --xpk: its cluster decides.'
  else
    [ -z "$env_file$cluster" ] ||
      die '--env-file and --cluster work with --xpk only; without it, --secret and the current kubectl context.'
  fi
  file env-file
  from_xpk=(--cluster="$cluster" --project="$project" --zone="$zone" --workload="$name")
}

read_training() {
  need image 'the container image, e.g. --image=us-docker.pkg.dev/my-project/seed/tpu:1'
  need accelerator 'what to train on, e.g. --accelerator=v5e-64'
  whole num-slices max-failures
  accelerator "$accelerator"
  [ "$num_slices" = 1 ] || [ "$hosts" -gt 1 ] ||
    die "--num-slices=$num_slices needs an --accelerator of several hosts on GKE, and $accelerator has one."
  check_training '-- --config=configs/pretrain.py:8b --workdir=gs://bucket/run' 'gs://' \
    '--workdir must be gs://...: pods keep nothing.'
}

# Print a word as a YAML (JSON) string.
yaml() { printf '"%s"' "$(printf %s "$1" | sed 's/\\/\\\\/g; s/"/\\"/g')"; }

# Fill in a ${NAME} of the manifest; without a value, drop its line.
fill() {
  if [ -n "$2" ]; then manifest=${manifest//"\${$1}"/"$2"}; else manifest=$(grep -vF "\${$1}" <<<"$manifest"); fi
}

render() {
  local manifest flag args='' label=$generation-slice env_from=''
  case $generation in
    v4) label=v4-podslice ;;
    v5e) label=v5-lite-podslice ;;
  esac
  for flag in "${training[@]}"; do args+="${args:+, }$(yaml "$flag")"; done
  [ -z "$secret" ] || env_from="[{secretRef: {name: $(yaml "$secret")}}]"
  manifest=$(grep -v '^#' "$root/launch/gke_jobset.yaml")
  fill NAME "$name"
  fill NAMESPACE "$(yaml "$namespace")"
  fill QUEUE "$queue"
  fill MAX_FAILURES "$max_failures"
  fill NUM_SLICES "$num_slices"
  fill HOSTS "$hosts"
  fill GKE_ACCELERATOR "tpu-$label"
  fill TOPOLOGY "$topology"
  fill SPOT "${spot:+\"true\"}"
  fill IMAGE "$(yaml "$image")"
  fill ENV_FROM "$env_from"
  fill CHIPS_PER_HOST "$chips_per_host"
  fill ARGS "[$args]"
  echo "$manifest"
}

submit_through_xpk() {
  local flag command='exec python -m seed_jax.main' request
  for flag in "${training[@]}"; do command+=" $(quote "$flag")"; done
  request=("${from_xpk[@]}" --tpu-type="$cloud_type" --num-slices="$num_slices" --docker-image="$image")
  # xpk starts again after 127-255 (signals) by itself; 1 is an exception in Python, 75 is saved after SIGTERM, 76 a lost
  # host or a step that hangs. Not 2.
  request+=(--max-restarts="$max_failures" --restart-on-exit-codes="1,75,76" --termination-grace-period-seconds=600)
  [ -z "$env_file" ] || request+=(--env-file="$env_file")
  run xpk workload create "${request[@]}" --command="$command"
}

submit() {
  if [ -n "$xpk" ]; then
    submit_through_xpk
  elif [ -n "$dry_run" ]; then
    run kubectl apply -f -
    render
  else
    render | kubectl apply -f -
  fi
}

command=${1-}
case $command in
  --help) help ;;
  run | render | logs | status | delete) shift ;;
  *) die "'$command' is not a command: expected run, render, logs, status or delete (see --help)." ;;
esac
read_options "$@"
of_set=jobset.sigs.k8s.io/jobset-name=$name
case $command in
  run)
    read_training
    submit
    ;;
  render)
    read_training
    render
    ;;
  logs)
    first=$of_set,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0
    run kubectl --namespace="$namespace" wait pod --selector="$first" --for=condition=Ready --timeout=1h
    run kubectl --namespace="$namespace" logs --follow --tail=-1 --selector="$first"
    ;;
  status)
    run kubectl --namespace="$namespace" get jobset "$name"
    run kubectl --namespace="$namespace" get pods --selector="$of_set" --output=wide
    ;;
  delete)
    if [ -n "$xpk" ]; then
      run xpk workload delete "${from_xpk[@]}"
    else
      run kubectl --namespace="$namespace" delete jobset "$name"
    fi
    ;;
esac
