#!/usr/bin/env bash
# Runs one training in several processes on this machine, as it would run on as many hosts.
#
#   launch/local.sh --processes 4 [--devices_per_process 2] -- --config=configs/debug.py --workdir=runs/four
#
# What stands after -- are the arguments of `llamax train`. Nothing is started again when a process is lost: for that
# take `llamax launch local` itself, or leave --max_restarts out below (docs/launch/local.md).
set -euo pipefail

# The command, where it is not on the PATH: LLAMAX='python -m llamax.cli.main'.
read -r -a llamax <<<"${LLAMAX:-llamax}"

options=()
while (($#)) && [[ $1 != -- ]]; do
  options+=("$1")
  shift
done
if (($# < 2)); then
  sed -n '2,4p' "$0" | cut -c3- >&2
  exit 2
fi
shift

exec "${llamax[@]}" launch local --name=local --max_restarts=0 "${options[@]}" -- "${llamax[@]}" train "$@"
