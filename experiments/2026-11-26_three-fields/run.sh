#!/usr/bin/env bash
# A study of dropout, lr and momentum at the reference's budget, then five seeds of its winner and of
# the reference; what is recorded here already is skipped. About an hour on 2 cores with bfloat16.
# Usage: run.sh [FOLDER FOR THE RUNS]
set -euo pipefail
cd "$(dirname "$0")"
runs=${1:-$HOME/mnist_ray_results/three-fields}
if ! [ -e study.csv ]; then
  resume=; if [ -e "$runs/study" ]; then resume=--resume; fi
  python -m mnist_ray.tune --config ../seed.yaml --name study --storage "$runs" --seed 200 \
    --space 'dropout=uniform(0,0.2)' --space 'lr=loguniform(0.002,0.05)' \
    --space 'momentum=uniform(0.7,0.97)' --search random --num-trials 16 --keep 4 \
    --confirm 0 --max-concurrent 2 $resume
  cp "$runs/study/best.yaml" winner.yaml
  python -m mnist_ray.results "$runs/study" --epochs --format csv > study_epochs.csv
  mkdir -p study && cp "$runs"/study/*.parquet study
  python -m mnist_ray.results "$runs/study" --format csv > study.csv
fi
../seeds.sh winner.yaml seeds "$runs" {201..205}
../seeds.sh ../seed.yaml reference "$runs" {201..205}
