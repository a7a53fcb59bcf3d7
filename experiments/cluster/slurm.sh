#!/bin/bash
# A run that survives its time limit, preemption and lost nodes: `sbatch experiments/cluster/slurm.sh`.
#
# Nothing but the same command is needed, however a job ends: a signal makes all ranks save together
# and exit with 5; a kill costs the steps since the last checkpoint; the next start goes on from
# there, also on another number of nodes or tasks.
#
#SBATCH --job-name=rntp
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
# --ntasks-per-node: a task a rank, without torchrun, which would hide the exit codes and kill its
# ranks 30 s after a signal. --requeue: after preemption and lost nodes. --open-mode: a restart does
# not erase what was said. --signal: SIGTERM to every rank 300 s before the limit; give it what a
# step and a save take.

CONFIG=${CONFIG:-experiments/quickstart/config.yaml}
PREEMPTED=5
# More arguments, such as RNTP_ARGS="--set run.timeouts_s.hang=600"

# The first node's name, unless it has no address by that name and MASTER_ADDR says another.
export MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE

srun --kill-on-bad-exit=1 bash -c \
    'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec rntp train "$@"' \
    rntp "$CONFIG" ${RNTP_ARGS:-}
code=$?

# Preempted means resume me; so does a death by signal (128 + n: the watchdog, a lost node). All
# other codes need a person: 1 an error or a rank that was lost, 2 config, 3 data, 4 checkpoint,
# 6 diverged.
if [ "$code" -ne "$PREEMPTED" ] && [ "$code" -le 128 ]; then
    exit "$code"
fi
if [ "${SLURM_RESTART_COUNT:-0}" -ge "${MAX_RESTARTS:-100}" ]; then
    echo "rntp: restarted $SLURM_RESTART_COUNT times; something ends every start" >&2
    exit "$code"
fi
exec scontrol requeue "$SLURM_JOB_ID"
