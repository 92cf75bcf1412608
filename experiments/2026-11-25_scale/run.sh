#!/usr/bin/env bash
# Skips what is recorded. On an idle machine about five minutes.
set -euo pipefail
cd "$(dirname "$0")"
python=../../.venv/bin/python
[ -e trials.csv ] || $python scale.py --nodes
[ -e nodes.csv ] || $python scale.py --trials
$python cost.py --driver 0.12
