#!/usr/bin/env bash
# The search, then ten seeds of its recipe; what is recorded here already is skipped. About 35 and 75
# minutes on 2 idle cores without bfloat16. Usage: run.sh [FOLDER FOR THE RUNS]
set -euo pipefail
cd "$(dirname "$0")"
runs=${1:-$HOME/mnist_ray_results/best}
if ! [ -e search.csv ]; then
  python -m mnist_ray.tune --name search --storage "$runs" --seed 100 --epochs 6 --num-trials 12 \
    --search tpe --scheduler fifo --confirm 3 --confirm-seeds 2 --max-concurrent 2 \
    --space 'lr=loguniform(0.08,0.4)' --space 'weight_decay=loguniform(5e-5,5e-4)' \
    --space 'augment_until=uniform(0.5,1)' --space 'rotation=uniform(4,12)' \
    --space 'shift=uniform(0.5,2)' --scale 0.1 --batch-size 64 --dropout 0
  python -m mnist_ray.results "$runs/search" --format csv > search.csv
  python -m mnist_ray.results "$runs/search" --epochs --format csv > search_epochs.csv
  mkdir -p search && cp "$runs"/search/*.parquet search
fi
../seeds.sh recipe.yaml seeds "$runs" {10..19}
