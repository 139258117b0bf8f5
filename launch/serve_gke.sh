#!/usr/bin/env bash
# Serve a model from single-host TPU slices of a GKE cluster: a Deployment of replicas, and a Service in front of them.
#
#   launch/serve_gke.sh COMMAND --name=N [OPTION...] [-- FLAG OF seed-jax serve...]
#
# Commands
#   run      create or change the Deployment and the Service (kubectl apply)
#   render   print the manifest that run would apply
#   logs     follow the logs of the replicas
#   status   show the Deployment, its pods and the Service
#   forward  make the Service reachable at http://127.0.0.1:8000 while the command runs
#   delete   remove both; running answers are finished first
# Options
#   --name                        at most 40 lower-case letters, digits and dashes
#   --image                       the image of launch/docker/serve_tpu.Dockerfile, where the cluster can pull it
#   --accelerator=v5e-1           a slice of one host: v5e-1, v5e-4, v5e-8, v6e-1, ...; give the server
#                                 --tensor-parallel=N to use N chips
#   --bucket                      Cloud Storage bucket with the models, mounted at /models (GKE's Cloud Storage FUSE)
#   --secret                      Kubernetes Secret with SEED_JAX_API_KEY, made by
#                                 kubectl create secret generic NAME --from-literal=SEED_JAX_API_KEY=...
#   --replicas=1 --spot           servers; only on Spot nodes
#   --namespace=default --service-account=default      the account may read the bucket
#   --dry-run                     print the commands instead of running them
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

name='' image='' accelerator='' bucket='' secret='' replicas=1 spot='' namespace=default service_account=default

read_options() {
  parse 'name image accelerator bucket secret replicas namespace service-account' \
    'spot' "$@"
  need name 'a name for the server'
  [[ $name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
    die "--name=$name is not possible: at most 40 lower-case letters, digits and dashes, a letter first."
}

read_server() {
  need image 'the container image, e.g. --image=us-docker.pkg.dev/my-project/seed/serve-tpu:1'
  need accelerator 'what to serve on, e.g. --accelerator=v5e-1'
  need bucket 'the bucket with the models, e.g. --bucket=my-bucket'
  need secret 'the Secret with SEED_JAX_API_KEY: without a key, nothing listens on a network'
  whole replicas
  accelerator "$accelerator"
  [ "$hosts" = 1 ] || die "--accelerator=$accelerator has $hosts hosts: a server uses one, give a smaller slice and --replicas."
  [[ " ${training[*]-} " =~ \ --model[=\ ]/models/ ]] ||
    die "--model is missing: give the server's flags behind --, for example -- --model=/models/seed_llama_8b"
}

# Print a word as a YAML (JSON) string.
yaml() { printf '"%s"' "$(printf %s "$1" | sed 's/\\/\\\\/g; s/"/\\"/g')"; }

# Fill in a ${NAME} of the manifest; without a value, drop its line.
fill() {
  if [ -n "$2" ]; then manifest=${manifest//"\${$1}"/"$2"}; else manifest=$(grep -vF "\${$1}" <<<"$manifest"); fi
}

render() {
  local manifest flag args='' label=$generation-slice
  case $generation in
    v4) label=v4-podslice ;;
    v5e) label=v5-lite-podslice ;;
  esac
  for flag in --shutdown-timeout=120 --open-metrics "${training[@]}"; do args+="${args:+, }$(yaml "$flag")"; done
  manifest=$(grep -v '^#' "$root/launch/serve_gke.yaml")
  fill NAME "$name"
  fill NAMESPACE "$(yaml "$namespace")"
  fill REPLICAS "$replicas"
  fill SERVICE_ACCOUNT "$(yaml "$service_account")"
  fill GKE_ACCELERATOR "tpu-$label"
  fill TOPOLOGY "$topology"
  fill SPOT "${spot:+\"true\"}"
  fill IMAGE "$(yaml "$image")"
  fill SECRET "$(yaml "$secret")"
  fill CHIPS "$chips_per_host"
  fill BUCKET "$(yaml "$bucket")"
  fill ARGS "[$args]"
  echo "$manifest"
}

command=${1-}
case $command in
  --help) help ;;
  run | render | logs | status | forward | delete) shift ;;
  *) die "'$command' is not a command: expected run, render, logs, status, forward or delete (see --help)." ;;
esac
read_options "$@"
kubectl=(kubectl --namespace="$namespace")
case $command in
  render)
    read_server
    render
    ;;
  run)
    read_server
    if [ -n "$dry_run" ]; then
      run kubectl apply -f -
      render
    else
      render | kubectl apply -f -
    fi
    ;;
  logs) run "${kubectl[@]}" logs --follow --tail=-1 --prefix --selector="app=$name" ;;
  status) run "${kubectl[@]}" get deployment,pod,service --selector="app=$name" --output=wide ;;
  forward) run "${kubectl[@]}" port-forward "service/$name" 8000:80 ;;
  delete) run "${kubectl[@]}" delete deployment,service "$name" ;;
esac
