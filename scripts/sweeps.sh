#!/usr/bin/env bash
# Several sweeps of one experiment into one folder, then, after --, their report.
#
#   scripts/sweeps.sh EXPERIMENT FOLDER JOBS [JOBS ...] [-- REPORT OPTIONS]
#
# Each JOBS (quoted; "": the grid of conf/experiment/EXPERIMENT.yaml) is overrides of one sweep;
# OPTIONS in the environment are overrides of all, PYTHON is the interpreter. Failed jobs (exit code
# 1) keep neither the others nor the report from being made. Run again, only what is missing is run.
# With --dry-run in OPTIONS the jobs are listed, and there is no report.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} experiment=$1 folder=$2 code=0
shift 2
while [ $# -gt 0 ] && [ "$1" != -- ]; do
	# shellcheck disable=SC2086  # several overrides in one argument are meant to be split
	"$python" -m pai -m "+experiment=$experiment" "hydra.sweep.dir=$folder" ${OPTIONS:-} $1 || code=$?
	if [ "$code" -gt 1 ]; then exit "$code"; fi
	shift
done
if [ $# -gt 0 ] && [[ " ${OPTIONS:-} " != *" --dry-run "* ]]; then
	shift
	"$python" scripts/report.py "$folder" "$@" || code=$?
fi
exit "$code"
