#!/usr/bin/env bash
# 16 trials of up to 8 epochs around the study's own recipe; about 20 minutes on 2 cores.
# Usage: run.sh [FOLDER FOR THE RUN]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python -m mnist_ray.tune --num-trials 16 --epochs 8 --seed 0 \
  --storage "${1:-$HOME/mnist_ray_results}" --name first-study 2>&1 | tee "$here/study.log"
