#!/usr/bin/env bash
# The search, then ten seeds of best.yaml; what is recorded here already is skipped. About 50 and 30
# minutes on 2 cores with bfloat16, three hours in all without. Usage: run.sh [FOLDER FOR THE RUNS]
set -euo pipefail
cd "$(dirname "$0")"
runs=${1:-$HOME/mnist_ray_results/second-search}
if ! [ -e search.csv ]; then
  resume=; if [ -e "$runs/search" ]; then resume=--resume; fi
  python -m mnist_ray.tune --name search --storage "$runs" --seed 300 --epochs 20 --num-trials 10 \
    --search random --scheduler fifo --confirm 3 --confirm-seeds 2 --max-concurrent 2 \
    --space 'lr=loguniform(0.12,0.3)' --space 'weight_decay=loguniform(8e-5,3e-4)' \
    --space 'augment_until=uniform(0.85,1)' --space 'rotation=uniform(6,10)' \
    --space 'shift=uniform(0.75,2)' --scale 0.1 --batch-size 64 --dropout 0 $resume
  python -m mnist_ray.results "$runs/search" --epochs --format csv > search_epochs.csv
  mkdir -p search && cp "$runs"/search/*.parquet search
  python -m mnist_ray.results "$runs/search" --format csv > search.csv
fi
if ! [ -e seeds.csv ]; then
  # Two at a time on one core each. One that was interrupted goes on.
  printf '%s\n' {310..319} | xargs -P 2 -I SEED bash -c '
    resume=; if [ -e "$2/seed-$1" ]; then resume=--resume; fi
    RAY_ADDRESS=local python -m mnist_ray.train --config ../best.yaml --holdout 0 --seed "$1" \
      --cpus-per-worker 1 --storage "$2" --name "seed-$1" $resume' _ SEED "$runs"
  python -m mnist_ray.results "$runs"/seed-* --epochs --format csv > seeds_epochs.csv
  python -m mnist_ray.results "$runs"/seed-* --sort seed --format csv > seeds.csv
fi
