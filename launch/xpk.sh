#!/usr/bin/env bash
# t2t train @{experiment} on a TPU slice of GKE, by xpk. Project and zone are gcloud's.
# The image: `t2t launch NAME --on docker --devices tpu` builds one; push it to where the cluster reads.
# Cost: @{cost}
# Data and compiled programs: /data of each pod, gone with it. Log: xpk prints where. Checkpoints, metrics and scores: @{run}
# Stopped after saving or left alone by another host (75), or preempted: all pods start again, from the last checkpoint.
# Exit codes 1, an error, and 2, something that the user can mend, end the workload.
set -eu
xpk workload create \
  --cluster="${XPK_CLUSTER:?the name of the cluster}" \
  --workload=@{job} \
  --tpu-type=@{devices} \
  --docker-image="${T2T_IMAGE:?the image that the cluster pulls}" \
  --max-restarts=100 \
  --restart-on-exit-codes=75 \
  --termination-grace-period-seconds=120 \
  --env=T2T_DATA=/data \
  --command=@{pod_shell}
