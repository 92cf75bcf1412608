#!/usr/bin/env bash
# Trains a recipe on all images once per seed, two at a time on one core each, and writes TABLE.csv
# and TABLE_epochs.csv here. A run that was interrupted goes on; a table that is here is left alone.
# Usage: seeds.sh RECIPE TABLE FOLDER_FOR_THE_RUNS SEED...
set -euo pipefail
recipe=$1 table=$2 runs=$3
shift 3
if [ -e "$table.csv" ]; then exit; fi
printf '%s\n' "$@" | xargs -P 2 -I SEED bash -c '
  resume=; if [ -e "$3/$2-$1" ]; then resume=--resume; fi
  RAY_ADDRESS=local python -m mnist_ray.train --config "$4" --holdout 0 --seed "$1" \
    --cpus-per-worker 1 --storage "$3" --name "$2-$1" $resume' _ SEED "$table" "$runs" "$recipe"
python -m mnist_ray.results "$runs/$table"-* --epochs --format csv > "${table}_epochs.csv"
python -m mnist_ray.results "$runs/$table"-* --sort seed --format csv > "$table.new"
mv "$table.new" "$table.csv"  # whole, or the next run would skip it
