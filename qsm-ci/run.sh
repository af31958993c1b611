#!/usr/bin/env bash
# QSM-CI contract: run.sh <input folder> <output folder>. Needs `chisep` on the PATH.
set -euo pipefail
exec chisep qsm-ci "${1:?input folder}" "${2:?output folder}"
