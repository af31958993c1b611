#!/bin/sh
# The experiment of the thesis from raw scans: eight simulated participants in six head orientations, labels by
# COSMOS and R2', the networks of the thesis, and Table 2.1.
#
#   examples/thesis_from_raw_scans.sh WORK [LABEL_MAP …]
#
# WORK/raw      raw scans as a scanner writes them (for your own scans, leave this step out)
# WORK/labels   maps and labels of every participant, and a page for each
# WORK/nets     trained networks
# WORK/table    Table 2.1 against the labels
#
# The variables SIMULATE, ORIENTATIONS, SPLIT, NETWORKS and TABLE add options to the commands. The same call goes on
# after an interruption.
set -eu
work=$1
shift
[ $# -eq 0 ] || set -- --labels "$@"
chisep simulate "$work/raw" "$@" --subjects 8 --orientations 6 --raw-orientations --voxel-mm 2 --snr 50 --seed 4 \
  --anisotropy-ppb 16 ${SIMULATE:-}
chisep orientations "$work/raw" "$work/labels" ${ORIENTATIONS:-}
chisep reproduce networks "$work/nets" --dataset "$work/labels" ${SPLIT:-} ${NETWORKS:-}
chisep reproduce table "$work/table" --dataset "$work/labels" --weights-folder "$work/nets" ${SPLIT:-} ${TABLE:-}
