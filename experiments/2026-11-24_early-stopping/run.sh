#!/usr/bin/env bash
# Everything of this experiment; skips what is recorded. About an hour on 2 cores.
# The scripts changed the training loop from outside, and are kept in the history alone.
bash "$(dirname "$0")/../as_recorded.sh" 006ca51 2026-11-24_early-stopping "$@"
