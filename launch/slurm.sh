#!/usr/bin/env bash
# A training on a SLURM cluster: copy this file, change the settings, run it on a login node (docs/launch/slurm.md).
#
#   launch/slurm.sh [VERB] [--dry_run]     VERB: run (the default), submit, status, logs, ssh, stop, delete, doctor
set -euo pipefail

nodes=4
gpus_per_node=8
partition=gpu
time=1-0        # a day; the run saves before it, comes back after it
setup=()        # lines that make llamax a command on a node: 'module load cuda' 'source venv/bin/activate'
config=configs/llama3_8b.py
workdir=runs/llama3_8b
more=()         # --account=..., --qos=..., --sbatch=--gres=gpu:8, --env NAME=VALUE

options=(--nodes="$nodes" --gpus_per_node="$gpus_per_node" --partition="$partition" --time="$time" "${more[@]}")
for line in "${setup[@]}"; do options+=(--setup="$line"); done

# The command, where it is not on the PATH: LLAMAX='python -m llamax.cli.main'.
read -r -a llamax <<<"${LLAMAX:-llamax}"
exec "${llamax[@]}" launch slurm "$@" "${options[@]}" -- \
  llamax train --config="$config" --workdir="$workdir"
