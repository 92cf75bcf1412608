#!/usr/bin/env bash
# The search, then ten seeds of best.yaml; what is recorded here already is skipped. 46 and 36
# minutes on 2 cores with bfloat16. Usage: run.sh [FOLDER FOR THE RUNS]
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
../seeds.sh ../best.yaml seeds "$runs" {310..319}
