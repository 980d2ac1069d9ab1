#!/usr/bin/env bash
# Trains on the TPUs of a GKE cluster: copy this file, change the settings, run it (docs/launch/gke.md).
#
#   launch/gke.sh [run|create|submit|status|logs|ssh|stop|delete|doctor] [--dry_run]
set -euo pipefail

name=eight
tpu=v6e:16x16          # as in llamax train --dry_run --topology=v6e:16x16; tpu7x:4x4x4 and so on too
slices=1
image=us-docker.pkg.dev/my-project/llamax/train@sha256:0000000000000000000000000000000000000000000000000000000000000000
tier=(--spot)          # or nothing
cluster=(--cluster=my-cluster --location=us-east5 --node_zone=us-east5-b)  # of create, delete; () for Autopilot
bucket=gs://my-runs    # with a hierarchical namespace
account=trainer        # the Kubernetes service account that may use it
config=configs/llama3_8b.py
train=(--config.data.sources=/mnt/runs/data/corpus)
more=()                # --queue=..., --namespace=..., --env NAME=VALUE, --secret WANDB_API_KEY

verb=${1:-run}
shift || true
# The command, where it is not on the PATH: LLAMAX='python -m llamax.cli.main'.
read -r -a llamax <<<"${LLAMAX:-llamax}"
exec "${llamax[@]}" launch gke "$verb" --name="$name" --tpu="$tpu" --slices="$slices" --image="$image" \
  "${tier[@]}" "${cluster[@]}" --mount="$bucket:/mnt/runs" --service_account="$account" "${more[@]}" "$@" \
  -- llamax train --config="$config" --workdir="/mnt/runs/$name" "${train[@]}"
