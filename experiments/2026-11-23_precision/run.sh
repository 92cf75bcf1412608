#!/usr/bin/env bash
# The reference recipe in both precisions, three seeds each, two runs at a time on one core each.
# About 40 minutes on 2 cores that have no bfloat16 of their own. Usage: run.sh [FOLDER FOR THE RUNS]
set -euo pipefail
cd "$(dirname "$0")"
if [ -e trials.csv ]; then exit; fi  # is recorded
runs=${1:-$HOME/mnist_ray_results/precision}
printf '%s\n' bf16-0 bf16-1 bf16-2 fp32-0 fp32-1 fp32-2 | xargs -P 2 -I RUN bash -c '
  python -m mnist_ray.train --config ../seed.yaml --holdout 0 --cpus-per-worker 1 \
    --precision "${1%-*}" --seed "${1#*-}" --storage "$2" --name "$1"' _ RUN "$runs"
python -m mnist_ray.results "$runs"/* --sort run --format csv > trials.csv
python -m mnist_ray.results "$runs"/* --epochs --format csv > epochs.csv
