#!/usr/bin/env bash
# Runs a record's scripts as they were when it was made, with the mnist_ray of that commit, in a copy.
# Scripts of explorations that are over are kept in the history alone.
# Usage: as_recorded.sh COMMIT RECORD [ARGUMENTS OF THE RECORD'S run.sh]
set -euo pipefail
commit=$1 record=$2
shift 2
copy=$(mktemp -d)
git -C "$(dirname "$0")/.." archive "$commit" | tar -x -C "$copy"
PYTHONPATH="$copy" bash "$copy/experiments/$record/run.sh" "$@"
echo "The tables are in $copy/experiments/$record"
