#!/bin/bash
# The figures on a machine with GPUs, in about five minutes; from the repository's root, with the python3 that has torch.
# OUT: where the JSON goes (bench/results).
set -euo pipefail
cd "$(dirname "$0")/.."
exec python3 bench/run.py --out "${OUT:-bench/results}" --rounds 7 --runs 10 --rootless "$@"
