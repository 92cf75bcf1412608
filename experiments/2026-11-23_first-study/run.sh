#!/usr/bin/env bash
# 16 trials of up to 8 epochs; about 25 minutes on 2 idle cores. Usage: run.sh [FOLDER FOR THE RUN]
set -euo pipefail
cd "$(dirname "$0")"
if [ -e trials.csv ]; then exit; fi  # is recorded
runs=${1:-$HOME/mnist_ray_results}
python -m mnist_ray.tune --num-trials 16 --epochs 8 --scheduler asha --seed 0 --storage "$runs" --name first-study
python -m mnist_ray.results "$runs/first-study" --format csv > trials.csv
python -m mnist_ray.results "$runs/first-study" --epochs --format csv > epochs.csv
cp "$runs/first-study/best.yaml" .
