#!/usr/bin/env bash
# Trains on a large data set on a Slurm cluster: an array job extracts features in parts, then a
# second job merges the parts and trains a head.
#
#   deploy/slurm/submit.sh DATA OUT PARTS [OPTION...]
#
# Options are passed to host train, such as --units 512 --pool avg.
#
# DATA, OUT and the program must be on storage shared by all nodes. OUT gets parts/,
# photos.features, head.postcard and log/.
# Environment:
#   HOST      the program [host, from PATH]; models/ beside it, or VGG_EDGE_BASE, has the base
#   EXTRACT   options of host extract, such as "--size 224 --cache /scratch/cache"
#   CPUS      cores of each task [4]
#   ARRAY     tasks to run [0 to PARTS - 1]: those that host merge names, to make only them again
#   SBATCH_*  what sbatch reads itself, such as SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,/^set/s/^# \?//p' "$0" >&2; exit 2; }
data=$(realpath -- "$1") parts=$3
case $parts in
  *[!0-9]* | '' | 0*) echo "submit.sh: PARTS must be a number above 0, not $parts" >&2; exit 2 ;;
esac
mkdir -p -- "$2/parts" "$2/log"
out=$(realpath -- "$2")
here=$(dirname "$(realpath -- "$0")")
shift 3
read -ra extract <<<"${EXTRACT:-}"

array=$(sbatch --parsable --cpus-per-task="${CPUS:-4}" --array="${ARRAY:-0-$((parts - 1))}" \
  --output="$out/log/extract-%A_%a.log" \
  "$here/extract.sbatch" "$data" "$out/parts" "$parts" ${extract[@]+"${extract[@]}"})
# After any outcome: the merge lists missing parts and the command that makes them.
train=$(sbatch --parsable --cpus-per-task="${CPUS:-4}" --dependency="afterany:${array%%;*}" \
  --output="$out/log/train-%j.log" \
  "$here/train.sbatch" "$out" "$@")
echo "extract ${array%%;*}, then merge and train ${train%%;*}; logs in $out/log"
