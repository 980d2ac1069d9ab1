#!/usr/bin/env bash
# Runs one training in several processes on this machine, as it would run on as many hosts.
#
#   launch/local.sh --processes 4 [--devices_per_process 2] -- --config=configs/debug.py --workdir=runs/four
#
# What stands after -- are the arguments of `llamax train`. Each line of output begins with the process it is of.
# With --devices_per_process the devices are virtual ones of the CPU. The processes find each other on the loopback
# address, on a free port; nothing else can reach them. SIGTERM and Ctrl-C go to all of them; when one ends before
# its time the others are ended. Exit code: that of the process that says most of what went wrong (docs/faults.md).
set -euo pipefail

usage() {
  sed -n '2,4p' "$0" | cut -c3- >&2
  exit 2
}

processes='' devices=''
while (($#)); do
  case $1 in
    --processes=* | --devices_per_process=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    --processes) [[ ${2-} =~ ^[1-9][0-9]*$ ]] || usage; processes=$2; shift 2 ;;
    --devices_per_process) [[ ${2-} =~ ^[1-9][0-9]*$ ]] || usage; devices=$2; shift 2 ;;
    --) shift; break ;;
    *) echo "launch/local.sh: $1: not known here; arguments of llamax train stand after --" >&2; usage ;;
  esac
done
[[ -n $processes && $# -gt 0 ]] || usage

# LLAMAX: the command, where it is not on the PATH (LLAMAX='python -m llamax.cli.main').
read -r -a llamax <<<"${LLAMAX:-llamax}"
if [[ -n $devices ]]; then
  export JAX_PLATFORMS=cpu
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
fi
export PYTHONUNBUFFERED=1

port=$(python3 - <<'PYTHON'
import socket

with socket.socket() as free:
  free.bind(('127.0.0.1', 0))
  print(free.getsockname()[1])
PYTHON
)

# What gloo says of each connection helps nobody.
prefix() { sed -u -e '/^\[Gloo\] Rank [0-9]* is connected/d' -e "s/^/[$1] /"; }

pids=()
forward() {
  local pid
  for pid in "${pids[@]}"; do kill "-$1" -- "$pid" 2>/dev/null || true; done
}
# Each process is in a group of its own (set -m): a Ctrl-C reaches it once, from here.
set -m
trap 'forward TERM' TERM
trap 'forward INT' INT
# Whatever ends this script, nothing of it stays.
trap 'forward KILL' EXIT

for ((rank = 0; rank < processes; rank++)); do
  "${llamax[@]}" train "$@" --coordinator="127.0.0.1:$port" --num_processes="$processes" --process_id="$rank" \
    > >(prefix "$rank") 2> >(prefix "$rank" >&2) &
  pids+=("$!")
done

# Of several codes the one that tells most: a mistake or a bug, then a lost process, a signal, a stop that was asked for.
weight() {
  case $1 in
    0) echo 0 ;;
    75 | 130) echo 1 ;;
    76) echo 3 ;;
    *) if (($1 > 128)); then echo 2; else echo 4; fi ;;
  esac
}

patience=${LLAMAX_PATIENCE:-30} # seconds
worst=0 alive=("${pids[@]}") deadline=''
while ((${#alive[@]})); do
  left=()
  for pid in "${alive[@]}"; do
    if kill -0 -- "$pid" 2>/dev/null; then
      left+=("$pid")
      continue
    fi
    code=0
    wait "$pid" || code=$?
    (($(weight "$code") > $(weight "$worst"))) && worst=$code
    # The others notice by themselves, with a name; who has not by then is ended.
    ((code == 0)) || deadline=${deadline:-$((SECONDS + patience))}
  done
  alive=("${left[@]}")
  if [[ -n $deadline ]] && ((SECONDS >= deadline)); then forward KILL; fi
  sleep 0.2 &
  wait "$!" || true # A signal ends this wait at once, so that its trap runs.
done
trap - EXIT
exit "$worst"
