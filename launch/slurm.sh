#!/bin/bash
#SBATCH --job-name=@{job}
#SBATCH --nodes=@{nodes}
#SBATCH --ntasks-per-node=@{tasks}
@{devices}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH --signal=B:TERM@120
# t2t train @{experiment} under SLURM. What your cluster wants besides goes above, or into the environment of sbatch:
# SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT. Across nodes there is a process for each GPU, as JAX expects.
# Cost: @{cost}
# Data and compiled programs: T2T_DATA below. Log: t2t's in %x-%j.log. Checkpoints, metrics and scores: @{run}
# All three must lie where every node sees them.
#
# Preempted, SLURM requeues the job by itself. Out of time, which this script hears 120 seconds before, the trainer saves
# and ends with exit code 75, and the job is requeued here. Either way the same command goes on from the last checkpoint.
set -u
export T2T_DATA=@{data}

trap 'scancel --signal=TERM "$SLURM_JOB_ID"' TERM # to the job's steps, not to this script

# A trainer that ended may not take the others along while they save; one that waits for it in vain may wait two minutes.
srun --kill-on-bad-exit=0 --wait=120 @{train} &
while kill -0 $! 2> /dev/null; do wait $!; done # a signal ends a wait, not the trainer
wait $!
code=$?

echo "t2t: exit code $code, restart ${SLURM_RESTART_COUNT:-0} of job $SLURM_JOB_ID" >&2
# RUNNING: a job that was cancelled, or that SLURM requeues by itself, is not.
# 134: JAX's runtime ended the process for want of another, which may have been stopped after saving.
if [[ ($code == 75 || $code == 134) && $(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID") == RUNNING ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
