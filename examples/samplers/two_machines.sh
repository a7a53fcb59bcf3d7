#!/bin/bash
# A trainer here and samplers anywhere: nobody listens on a port, both read and write one store.
#
#   machine A:  examples/samplers/two_machines.sh train
#   machine B:  examples/samplers/two_machines.sh sample      (as often as there are GPUs, or machines)
#
# STORE is a folder that both see (NFS), or a bucket: s3://bucket/folder, with the usual variables
# (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL) and `pip install 'rntp[s3]'`.
# RNTP_STORE_KEY: one secret for all of them; without it whoever can write to the store can bring
# rollouts. Order does not matter: who comes first waits. A sampler leaves by being killed.
set -euo pipefail

STORE=${STORE:-runs/samplers-store}
CONFIG=${CONFIG:-examples/samplers/config.yaml}

case "${1:-}" in
    train) exec rntp train "$CONFIG" --set "rollout.samplers.store=$STORE" ;;
    sample) exec rntp sample "$STORE" ;;
    *) echo "usage: $0 train|sample" >&2; exit 2 ;;
esac
