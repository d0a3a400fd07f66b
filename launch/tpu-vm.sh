#!/usr/bin/env bash
# t2t train @{experiment} on a Cloud TPU that is waited for (queued resource, spot); run it in a clone of t2t.
# Project and zone are gcloud's: gcloud config set compute/zone ZONE, or CLOUDSDK_COMPUTE_ZONE.
# Cost: @{cost}
# Data and compiled programs: ~/t2t-data of each TPU host. Log: this terminal. Checkpoints, metrics and scores: @{run}
# A preempted TPU is asked for anew, and the same command goes on there from the last checkpoint. This script stopped: run it
# again. It deletes the TPU when training is done, or when the user has something to mend (exit code 2).
set -u
name=@{job}
queue=(gcloud compute tpus queued-resources)

state() {
  "${queue[@]}" list --filter="name ~ /$name\$" --format="value(state.state)"
}
delete() {
  "${queue[@]}" delete "$name" --force --quiet
}
everywhere() {
  gcloud compute tpus tpu-vm ssh "$name" --worker=all --command="$1"
}
# What fails here is the network's or this machine's fault: 1, whatever code these programs have for it.
setup() {
  tar -czf - pyproject.toml README.md LICENSE t2t experiments launch > "$archive" &&
    gcloud compute tpus tpu-vm scp "$archive" "$name:t2t.tar.gz" --worker=all &&
    everywhere 'mkdir -p t2t && tar -xzf t2t.tar.gz -C t2t && python3 -m pip install --quiet --user uv &&
      python3 -m uv venv --quiet --allow-existing --python 3.12 t2t-venv &&
      python3 -m uv pip install --quiet --python t2t-venv "./t2t[gcs,tfds]" "jax[tpu]"' || return 1
}
train() {
  setup || return
  # A trainer that a lost connection left behind goes on; this one waits for it.
  everywhere "exec 9> t2t.lock; flock 9; export PATH=~/t2t-venv/bin:\$PATH T2T_DATA=~/t2t-data
    export TFDS_DATA_DIR=~/t2t-data/tensorflow_datasets; exec "@{quoted}
}

archive=$(mktemp)
trap 'rm -f "$archive"' EXIT
while :; do
  now=$(state) || exit 1
  case $now in
    "")
      "${queue[@]}" create "$name" --node-id="$name" --spot \
        --accelerator-type=@{devices} --runtime-version=@{runtime} || exit 1
      ;;
    ACTIVE)
      train
      code=$?
      if [[ $code == 0 || $code == 2 ]]; then
        delete
        exit $code
      fi
      echo "t2t: exit code $code; in a minute it is seen whether the TPU was preempted" >&2
      sleep 60
      if [[ $code == 1 && $(state) == ACTIVE ]]; then # an error that is not the TPU's
        echo "t2t: $name is left as it is; to delete it: ${queue[*]} delete $name --force" >&2
        exit 1
      fi
      ;;
    SUSPENDED | FAILED) delete || exit 1 ;;
    *) sleep 60 ;; # waiting, being made, being taken away
  esac
done
