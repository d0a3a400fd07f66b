#!/usr/bin/env bash
# t2t train @{experiment} on this machine, started again whenever it was stopped after saving (exit code 75).
# Cost: @{cost}
# Data and compiled programs: T2T_DATA below. Log: this terminal. Checkpoints, metrics and scores: @{run}
# Ctrl-C, or SIGTERM to this script: the trainer saves and ends, and the same command again goes on from there.
set -um  # m: the trainer has a process group of its own, so that Ctrl-C reaches it once, through `stop`
export T2T_DATA=@{data}
@{devices}

stopped=
stop() {
  [[ $stopped ]] || kill -TERM $!
  stopped=yes
}
trap stop INT TERM

while :; do
  @{train} &
  while kill -0 $! 2> /dev/null; do wait $!; done # a signal ends a wait, not the trainer
  wait $!
  code=$?
  [[ $code == 75 && ! $stopped ]] || exit $code
done
