#!/usr/bin/env bash
# Trains on Cloud TPU VMs up to v6e: copy this file, change the settings, run it (docs/launch/tpu-vm.md).
#
#   launch/tpu-vm.sh [run|create|submit|status|logs|ssh|stop|delete|doctor] [--dry_run]
set -euo pipefail

name=eight
tpu=v5e:16x16          # as in llamax train --dry_run --topology=v5e:16x16
slices=1
zone=us-west4-a
tier=(--spot)          # or --reserved, or nothing: on demand
bucket=gs://my-runs    # with a hierarchical namespace
config=configs/llama3_8b.py
train=(--config.data.sources=/mnt/runs/data/corpus)
more=()                # --project=..., --env NAME=VALUE, --secret WANDB_API_KEY, --price_per_chip_hour=...

verb=${1:-run}
shift || true
# The command, where it is not on the PATH: LLAMAX='python -m llamax.cli.main'.
read -r -a llamax <<<"${LLAMAX:-llamax}"
exec "${llamax[@]}" launch tpu-vm "$verb" --name="$name" --tpu="$tpu" --slices="$slices" --zone="$zone" \
  "${tier[@]}" --mount="$bucket:/mnt/runs" "${more[@]}" "$@" \
  -- llamax train --config="$config" --workdir="/mnt/runs/$name" "${train[@]}"
