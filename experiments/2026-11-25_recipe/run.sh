#!/usr/bin/env bash
# The exploration; runs that are recorded are skipped. The screen's second half is not: 50 minutes.
# The scripts changed the training loop from outside, and are kept in the history alone.
bash "$(dirname "$0")/../as_recorded.sh" 006ca51 2026-11-25_recipe "$@"
