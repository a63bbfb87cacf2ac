#!/usr/bin/env bash
# Our int8 base beside other engines on the same work, interleaved: milliseconds an image, the least
# of all rounds.
#   benchmarks/peers.sh FOLDER [SIZE] [THREADS] [ROUNDS]
# FOLDER holds peers.py, its models and its environment v/ (shared/bench/README.md says how they are
# made). EDGE names our program.
set -euo pipefail
folder=$(cd "$1" && pwd) size=${2:-64} threads=${3:-1} rounds=${4:-3}
repo=$(cd "$(dirname "$0")/.." && pwd)
edge=${EDGE:-$repo/target/release/edge}
runs=$((size > 100 ? 8 : 30))
results=$(mktemp)
trap 'rm -f "$results"' EXIT
peer() { # NAME ENGINE MODEL
  local line
  line=$(cd "$folder" &&
    v/bin/python peers.py "$2" "$3" "$threads" 1 "$size" "$runs" 2>/dev/null | tail -1) || return 0
  # peers.py prints the least time first, in ms.
  echo "$1 $(grep -oE '[0-9]+\.[0-9]+' <<<"$line" | head -1)" >>"$results"
}
for _ in $(seq "$rounds"); do
  echo "vgg-edge-int8 $("$edge" bench --base "$repo/models/vgg16-notop-int8.onnx" --size "$size" \
    --threads "$threads" --runs "$runs" --json |
    grep -oE '"ms_min":[0-9.]+' | cut -d: -f2)" >>"$results"
  peer openvino-f32 ov "models/f32_$size.onnx"
  peer openvino-int8 ov "models/qdq_$size.onnx"
  peer onnxruntime-f32 ort "models/f32_$size.onnx"
  peer onnxruntime-int8 ort "models/qop_$size.onnx"
  peer ncnn-f32 ncnn models/ncnn_f32
  peer ncnn-int8 ncnn models/ncnn_int8
  if [ "$size" = 64 ]; then
    peer litert-f32 tflite models/f32_64.tflite
    peer litert-int8 tflite models/int8_64.tflite
  fi
  peer torch-f32 torch plain
done
echo "size $size, threads $threads, least of $rounds rounds of $runs:"
awk '$2 != "" { if (!($1 in least) || $2 < least[$1]) least[$1] = $2 }
  END { for (name in least) printf "%-18s %8.2f ms  %5.2f\n", name, least[name], least[name] / \
    least["vgg-edge-int8"] }' "$results" | sort -k2 -n
