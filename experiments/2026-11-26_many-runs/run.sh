#!/usr/bin/env bash
# The three stages on this machine's GPU, 12 minutes on an H100; skipped if runs.csv is here. Then
# the effects.
set -euo pipefail
cd "$(dirname "$0")"
if ! [ -e runs.csv ]; then
  python plan.py 1 | python many.py 1 --slots 20 --teachers 3 --seconds 235
  for stage in 2 3; do
    for part in 0 1 2; do
      python plan.py "$stage" | awk "NR % 3 == $part" | python many.py "$stage" &
    done
    wait
  done
fi
python effects.py
