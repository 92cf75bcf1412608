#!/usr/bin/env bash
# The exploration; runs that are recorded are skipped. The screen's second half is not: 50 minutes.
set -euo pipefail
cd "$(dirname "$0")"
python leads.py
python augment.py
python twenty.py
python distil.py
python explore.py screen
python effects.py
