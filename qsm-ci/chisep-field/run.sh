#!/usr/bin/env bash
# QSM-CI contract: reads /input, writes /output, without network; the local runner gives both folders.
set -euo pipefail
exec chisep qsm-ci "${1:-/input}" "${2:-/output}" --stage 'field-mapping'
