#!/usr/bin/env bash
# Three seeds of the reference recipe on all 60,000 images, two at a time on one core each.
# About 25 minutes a pair on 2 idle cores. Usage: run.sh [NEW FOLDER FOR THE RUNS]
set -euo pipefail
cd "$(dirname "$0")"
if [ -e trials.csv ]; then exit; fi  # is recorded
runs=${1:-$HOME/mnist_ray_results/reference}
printf '%s\n' 0 1 2 | xargs -P 2 -I SEED python -m mnist_ray.train --config ../seed.yaml \
  --holdout 0 --seed SEED --cpus-per-worker 1 --storage "$runs" --name seed-SEED
python -m mnist_ray.results "$runs"/seed-* --sort seed --format csv > trials.csv
python -m mnist_ray.results "$runs"/seed-* --epochs --format csv > epochs.csv
