#!/usr/bin/env bash
# What `t2t launch --on slurm` prints, under a real SLURM: stopped, requeued and run to its end; cancelled; mistaken.
#
# Run it as root, with slurmctld, slurmd and munged installed (Debian: slurm-wlm, munge). One node is made of this
# machine in a folder that goes again; nothing of the system's own SLURM is read or changed.
set -euo pipefail
folder=$(mktemp -d)
chmod 755 "$folder"
export SLURM_CONF=$folder/slurm.conf
started=()

leave() {
  scancel --user=root 2> /dev/null || true
  sleep 1
  kill "${started[@]}" 2> /dev/null || true
  wait
  rm -rf "$folder"
}
trap leave EXIT

within() { # SECONDS COMMAND...: until the command succeeds
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    if ((SECONDS > end)); then
      echo "not within its time: $*" >&2
      tail -n 20 "$folder"/*.log >&2
      exit 1
    fi
    sleep 0.2
  done
}
state() { # JOB STATE: whether it is in that state
  scontrol show job "$1" | grep -q "JobState=$2 "
}
says() { # JOB TEXT: whether its log says so
  grep -qs "$2" "$folder/t2t-run-$1.log"
}
begun() { # RUN: whether a step was logged
  test -s "$folder/$1/metrics.jsonl"
}
rows() { # RUN STEPS: each fifth step is in its log once
  python3 - "$folder/$1/metrics.jsonl" "$2" << 'END'
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
steps = [row["step"] for row in rows if row["split"] == "train"]
assert steps == list(range(5, int(sys.argv[2]) + 1, 5)), steps
print(f"metrics.jsonl: {len(steps)} rows, steps {steps[0]} to {steps[-1]}, none missing and none twice")
END
}
submit() { # RUN KNOBS...: prints the number of the job; its time limit is $SBATCH_TIMELIMIT
  t2t launch quickstart --on slurm --dry-run --run "$folder/$1" --log_every 5 --model.num_layers 1 --model.d_ff 64 \
    --final_evaluation none "${@:2}" > "$folder/$1.sh"
  if [[ $1 == pair ]]; then # the script of two nodes with a GPU each, for one without any
    sed -i 's/--nodes=2/--nodes=1/; s/--ntasks-per-node=1/--ntasks-per-node=2/; /--gpus-per-node/d' "$folder/$1.sh"
  fi
  sbatch --parsable --chdir="$folder" --job-name=t2t-run "$folder/$1.sh"
}

cat > "$SLURM_CONF" << END
ClusterName=t2t
SlurmctldHost=$(hostname -s)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthInfo=socket=$folder/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
ReturnToService=2
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
NodeName=$(hostname -s) CPUs=$(nproc)
PartitionName=main Nodes=ALL Default=YES
END
head -c 1024 /dev/urandom > "$folder/munge.key"
chmod 400 "$folder/munge.key"
munged --foreground --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
  --pid-file="$folder/munge.pid" --seed-file="$folder/munge.seed" > "$folder/munged.log" 2>&1 &
started+=($!)
within 20 test -S "$folder/munge.socket"
slurmctld -D > "$folder/slurmctld.log" 2>&1 &
started+=($!)
slurmd -D > "$folder/slurmd.log" 2>&1 &
started+=($!)
within 60 bash -c 'sinfo --noheader --format=%T 2> /dev/null | grep -q idle'
echo "== $(sinfo --version), one node: $(sinfo --noheader)"

echo "== stopped, requeued, run to its end"
job=$(submit first --train_steps 600)
within 300 begun first
scancel --signal=TERM --batch "$job"
within 60 says "$job" "exit code 75, restart 0"
within 60 state "$job" PENDING
squeue
within 300 state "$job" RUNNING
within 300 state "$job" COMPLETED
grep -v "^step .* left$" "$folder/t2t-run-$job.log"
says "$job" "exit code 0, restart 1"
rows first 600

echo "== two processes: stopped, requeued, run to their end"
job=$(submit pair --devices 2x1 --train_steps 60)
within 300 begun pair
scancel --signal=TERM --batch "$job"
within 60 says "$job" "exit code 75, restart 0"
within 300 says "$job" "exit code 0, restart 1"
grep -v "^step .* left$" "$folder/t2t-run-$job.log"
rows pair 60

echo "== out of time: stopped 120 seconds before, requeued"
job=$(SBATCH_TIMELIMIT=4 submit timely --train_steps 100000)
within 240 says "$job" "exit code 75, restart 0"
within 60 state "$job" PENDING
scontrol show job "$job" | grep -E "JobState|Restarts|RunTime"
scancel "$job"

echo "== cancelled: not requeued"
job=$(submit second --train_steps 100000)
within 300 begun second
scancel "$job"
within 60 state "$job" CANCELLED
within 60 says "$job" "exit code 75, restart 0"
sleep 10
state "$job" CANCELLED
tail -n 2 "$folder/t2t-run-$job.log"

echo "== a mistake: not requeued"
job=$(submit third --mesh.data 64)
within 300 state "$job" FAILED
says "$job" "exit code 2, restart 0"
tail -n 2 "$folder/t2t-run-$job.log"
echo "== all as it should be"
