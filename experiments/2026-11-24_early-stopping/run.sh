#!/usr/bin/env bash
# Everything of this experiment; skips what is recorded. About an hour on 2 cores.
set -euo pipefail
cd "$(dirname "$0")"
python curves.py
python replay.py
python confirm.py $(python -c 'import pandas; print(*pandas.read_csv("schedulers.csv").winner.unique())')
