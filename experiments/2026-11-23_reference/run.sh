#!/usr/bin/env bash
# Three seeds of the reference recipe on all 60,000 images, two at a time on one core each.
# About 20 minutes per pair. Usage: run.sh [FOLDER FOR THE RUNS]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
runs=${1:-$HOME/mnist_ray_results/reference}
printf '%s\n' 0 1 2 | xargs -P 2 -I SEED sh -c "python -m mnist_ray.train \
  --config '$here/../seed.yaml' --holdout 0 --seed SEED --cpus-per-worker 1 \
  --storage '$runs' --name seed-SEED > '$here/seed-SEED.log' 2>&1"
