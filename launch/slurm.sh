#!/usr/bin/env bash
# Submit a training to GPU nodes of a Slurm cluster: launch/slurm.sbatch with the right number of tasks.
#
#   launch/slurm.sh --nodes=2 --time=24:00:00 [OPTION...] -- --config=configs/pretrain.py:8b --workdir=/shared/run
#
# Options
#   --nodes=1 --gpus-per-node=8   one task for each GPU
#   --time                        limit of one stay on the nodes, more than 5 minutes; before it ends the training saves
#                                 and goes back into the queue
#   --partition, --account, --cpus-per-task, --sbatch-flags='...'      as sbatch takes them
#   --python, --env-file, --container, --max-requeues, --max-failures  as launch/slurm.sbatch takes them
#   --dry-run                     print the command instead of running it
# Afterwards
#   tail -F seed_jax-JOB.log                                                the log
#   scontrol update JobId=JOB Requeue=0 && scancel --signal=TERM JOB        save and stop
#   scancel JOB                                                             stop without waiting for a save
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

nodes=1 gpus_per_node=8 time='' partition='' account='' cpus_per_task='' sbatch_flags=''
python='' env_file='' container='' max_requeues=100 max_failures=3
parse 'nodes gpus-per-node time partition account cpus-per-task sbatch-flags
  python env-file container max-requeues max-failures' '' "$@"
need time 'the limit of one stay on the nodes, e.g. --time=24:00:00'
whole nodes gpus-per-node max-requeues max-failures
file env-file
check_training '-- --config=configs/pretrain.py:8b --workdir=/shared/run' '[^ ]' '--workdir is empty.'

read -r -a request <<<"--time=$time $sbatch_flags"
request+=(--nodes="$nodes" --gpus-per-node="$gpus_per_node" --ntasks-per-node="$gpus_per_node" --chdir="$root")
[ -z "$partition" ] || request+=(--partition="$partition")
[ -z "$account" ] || request+=(--account="$account")
[ -z "$cpus_per_task" ] || request+=(--cpus-per-task="$cpus_per_task")
job=(launch/slurm.sbatch --max-requeues="$max_requeues" --max-failures="$max_failures")
[ -z "$python" ] || job+=(--python="$python")
[ -z "$env_file" ] || job+=(--env-file="$(cd "$(dirname "$env_file")" && pwd)/$(basename "$env_file")")
[ -z "$container" ] || job+=(--container="$container")
cd "$root"
run sbatch "${request[@]}" "${job[@]}" -- "${training[@]}"
