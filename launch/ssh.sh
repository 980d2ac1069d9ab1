#!/usr/bin/env bash
# Trains on a list of hosts over ssh; a thin script to copy, with the settings of a project on top (docs/launch/ssh.md).
#
#   launch/ssh.sh [run|create|submit|status|logs|stop|delete|doctor|ssh] [--dry_run]
set -euo pipefail

name=demo
hosts=one,two          # names of ~/.ssh/config; process 0 runs on the first
workdir=/mnt/runs/demo # on a disk that all of them share
config=configs/125m.py
install=(--python=python3.12 --extra=cuda)
# As the others reach the first host, where its name is not enough: --coordinator=10.0.0.1:8476
place=()
train=(--config.data.sources=/mnt/data/mine)

verb=${1:-run}
shift || true
exec llamax launch ssh "$verb" --name="$name" --hosts="$hosts" "${install[@]}" "${place[@]}" "$@" \
  -- llamax train --config="$config" --workdir="$workdir" "${train[@]}"
