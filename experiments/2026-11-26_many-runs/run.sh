#!/usr/bin/env bash
# The three stages on this machine's GPU, 12 minutes on an H100; skipped if runs.csv is here. Then
# the effects.
# The scripts changed the training loop from outside, and are kept in the history alone.
bash "$(dirname "$0")/../as_recorded.sh" 006ca51 2026-11-26_many-runs "$@"
