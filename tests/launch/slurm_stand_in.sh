#!/bin/bash
# Stands in for llamax train under SLURM: a checkpoint each fifth of a second up to 12, SIGTERM saves.
# WORKDIR/fault-START-RANK: an exit code, or KILL, after three of them. While WORKDIR/hold is there the fifth waits.
for word; do [[ $word == --workdir=* ]] && workdir=${word#--workdir=}; done
trap 'asked=yes' TERM
printf '%s\n' "$@" >"$workdir/words-$SLURM_PROCID"
echo "rank $SLURM_PROCID of $SLURM_NTASKS, NOTE=$NOTE"
newest() { find "$workdir/checkpoints" -mindepth 1 -maxdepth 1 -printf '%f\n' 2>/dev/null | sort -n | tail -n 1; }
fault=$(cat "$workdir/fault-${SLURM_RESTART_COUNT:-0}-$SLURM_PROCID" 2>/dev/null)
first=$(newest)
for ((step = ${first:-0} + 1; step <= 12; step++)); do
  sleep 0.2
  while [[ -e $workdir/hold && ! $asked ]] && ((step == 5)); do sleep 0.1; done
  ((SLURM_PROCID == 0)) && mkdir -p "$workdir/checkpoints/$step" && echo "step $step"
  [[ $asked ]] && exit 75
  [[ $fault ]] && ((step >= ${first:-0} + 3)) && break
done
[[ $fault == KILL ]] && kill -9 $$
[[ $fault ]] && exit "$fault"
echo 'all done'
