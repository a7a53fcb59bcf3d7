#!/bin/bash
# A grid of runs as a job array, one run a task:
#
#   runs=$(rntp ablate EXPERIMENT --dry-run --json | python3 -c 'import json, sys; print(len(json.load(sys.stdin)["runs"]))')
#   array=$(EXPERIMENT=EXPERIMENT sbatch --parsable --array=0-$((runs - 1))%8 experiments/cluster/slurm_array.sh)
#   sbatch --dependency=afterany:$array --wrap "rntp ablate EXPERIMENT --table"
#
# A task that is preempted saves and is started again; a run that is finished costs a second.
#
#SBATCH --job-name=rntp-ablate
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300

PREEMPTED=5

srun rntp ablate "${EXPERIMENT:?name the experiment}" --run "$SLURM_ARRAY_TASK_ID"
code=$?
if [ "$code" -ne "$PREEMPTED" ] && [ "$code" -le 128 ]; then
    exit "$code"
fi
exec scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
