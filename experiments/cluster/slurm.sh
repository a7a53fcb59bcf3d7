#!/bin/bash
# A run that survives its time limit, preemption and lost nodes: `sbatch experiments/cluster/slurm.sh`.
#
# Nothing but the same command is needed, however a job ends: a signal makes it save and exit with
# 5; a kill costs the steps since the last checkpoint; the next start goes on from there.
#
#SBATCH --job-name=rntp
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
# --requeue: after preemption and lost nodes. --open-mode: a restart does not erase what was said.
# --signal: SIGTERM to the steps 120 s before the limit; give it what a step and a save take.

CONFIG=${CONFIG:-experiments/quickstart/config.yaml}
PREEMPTED=5
# More arguments, such as RNTP_ARGS="--set run.hang_timeout_s=600"

srun --kill-on-bad-exit=1 rntp train "$CONFIG" ${RNTP_ARGS:-}
code=$?

# Preempted means resume me; so does a death by signal (128 + n: the watchdog, a lost node). All
# other codes need a person: 2 config, 3 data, 4 checkpoint, 6 diverged.
if [ "$code" -eq "$PREEMPTED" ] || [ "$code" -gt 128 ]; then
    exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
