#!/bin/bash
# Samplers as an array of small jobs beside a trainer: `sbatch examples/samplers/slurm.sh`, and the
# trainer with experiments/cluster/slurm.sh (one task) and the same STORE.
#
# Every task of the array is a sampler. They may start before the trainer or after it, be preempted,
# requeued, and be as many as the cluster gives: a part of a step that a killed one had taken is
# sampled by another once its lease has run out (rollout.samplers.lease_s).
#
#SBATCH --job-name=rntp-samplers
#SBATCH --array=0-7
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append

STORE=${STORE:?set STORE to the folder or URL of rollout.store}
# RNTP_STORE_KEY comes from the environment of sbatch, not from this file.

srun rntp sample "$STORE" --name "${SLURM_ARRAY_JOB_ID:-job}-${SLURM_ARRAY_TASK_ID:-0}"
