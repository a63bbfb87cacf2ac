#!/usr/bin/env bash
# Instructions that ONNX Runtime, ncnn and vgg-edge execute for one image on aarch64, counted under
# qemu-user: a count says what the code does, not how long it takes.
#   benchmarks/aarch64_peers.sh PEERS WORK [SIZE...]          sizes 64 and 224 unless told
# PEERS holds models/f32_SIZE.onnx, ncnn_f32.*, ncnn_int8.* and in_SIZE_0.bin
# (shared/bench/README.md says how they are made). WORK takes the downloads (kept and used again,
# 500 MB). Needs qemu-user (not the static one: it loads no plugin), cc, dpkg-deb, pip. CPUS: of
# cortex-a53, cortex-a72, cortex-a76. EDGE: our program, built for aarch64. ICOUNT: the source of
# the plugin.
set -euo pipefail
peers=$(cd "$1" && pwd)/models
mkdir -p "$2"
work=$(cd "$2" && pwd)
shift 2
sizes=("$@")
((${#sizes[@]})) || sizes=(64 224)
repo=$(cd "$(dirname "$0")/.." && pwd)
edge=${EDGE:-$repo/target/aarch64-unknown-linux-musl/release/edge}
base=$repo/models/vgg16-notop-int8.onnx
cd "$work"
# A copy: a build may replace it between two counts.
rm -f edge
if [ -x "$edge" ]; then cp "$edge" edge; fi

# The machine's apt knows amd64 only and stays so: all of apt's state is private. bookworm, for the
# Python 3.11 that the wheels are of.
if [ ! -e root/.done ]; then
  mkdir -p apt/{state/lists/partial,cache/archives/partial} debs root/usr/lib
  : >apt/status
  keys=/usr/share/keyrings/debian-archive-keyring.gpg
  echo "deb [signed-by=$keys] http://deb.debian.org/debian bookworm main" >apt/sources.list
  cat >apt/apt.conf <<END
APT::Architecture "arm64"; APT::Architectures { "arm64"; };
APT::Sandbox::User "root"; Acquire::Languages "none";
Dir::Etc::SourceList "$work/apt/sources.list"; Dir::Etc::SourceParts "-";
Dir::State "$work/apt/state"; Dir::State::status "$work/apt/status"; Dir::Cache "$work/apt/cache";
END
  export APT_CONFIG=$work/apt/apt.conf
  apt-get -q update
  (cd debs && apt-get -q download libc6 libgcc-s1 libstdc++6 libgomp1 zlib1g libexpat1 libffi8 \
    libbz2-1.0 liblzma5 libssl3 libpython3.11-minimal libpython3.11-stdlib python3.11-minimal)
  unset APT_CONFIG
  ln -sfn usr/lib root/lib # packages put files in /lib and in /usr/lib
  for deb in debs/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C root --keep-directory-symlink
  done
  touch root/.done
fi
if [ ! -e site/.done ]; then
  mkdir -p wheels site
  python3 -m pip download -q --no-deps --only-binary=:all: --implementation cp --abi cp311 \
    --python-version 3.11 -d wheels \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
    onnxruntime==1.32.0 ncnn==1.0.20261020 numpy==2.4.6
  for wheel in wheels/*aarch64.whl; do python3 -m zipfile -e "$wheel" site; done
  touch site/.done
fi
cc -O2 -shared -fPIC -o icount.so "${ICOUNT:-$repo/../shared/bench/icount.c}"

cat >run.py <<'END'
import sys
import numpy as np

engine, model, size, picture, out, reference, passes = sys.argv[1:]
x = np.fromfile(picture, dtype=np.float32).reshape(1, 3, int(size), int(size))
if engine == "onnxruntime":
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    taken = session.get_inputs()[0]
    if taken.type == "tensor(uint8)":  # our base: scale and zero point of its input
        x = np.clip(np.rint(x / np.float32(1.0774157)) + 115, 0, 255).astype(np.uint8)
    infer = lambda: session.run(None, {taken.name: x})[0]
else:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = 1
    net.opt.use_vulkan_compute = False
    # ncnn computes in f16 by itself where the CPU can.
    if engine != "ncnn-f16":
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    assert net.load_param(model + ".param") == 0 and net.load_model(model + ".bin") == 0
    picture = ncnn.Mat(x[0])

    def infer():
        extractor = net.create_extractor()
        extractor.input("data", picture)
        return np.array(extractor.extract("out")[1])[None]


for _ in range(int(passes)):
    features = infer()
np.save(out, features)
if out != reference:
    wanted = np.load(reference)
    error = np.linalg.norm(features.astype(np.float32) - wanted) / np.linalg.norm(wanted)
    print("error=%.4f" % error)
END

# What the engines read of the processor besides the capability bits, which qemu gives: without
# these they would see this machine's.
root_of() { # CPU
  local root=root-$1 part variant features='' level1 level2 cpu index
  case $1 in # part, variant, caches as on Pi 3 B+, 4 and 5
    cortex-a53) part=0xd03 variant=0x0 level1=32K level2=512K ;;
    cortex-a72) part=0xd08 variant=0x0 level1=32K level2=1024K ;;
    cortex-a76)
      part=0xd0b variant=0x4 level1=64K level2=512K
      features=" atomics fphp asimdhp lrcpc dcpop asimddp"
      ;;
    *) echo "no such processor here: $1" >&2 && return 1 ;;
  esac
  rm -rf "$root"
  mkdir -p "$root/proc" "$root/sys/devices/system/cpu"
  ln -s ../root/usr ../root/lib ../root/etc "$root"
  for cpu in 0 1 2 3; do
    format='processor\t: %d\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32%s cpuid\n'
    format+='CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: %s\n'
    format+='CPU part\t: %s\nCPU revision\t: 1\n\n'
    # shellcheck disable=SC2059
    printf "$format" \
      "$cpu" "$features" "$variant" "$part" >>"$root/proc/cpuinfo"
    for index in 0 1 2; do
      mkdir -p "$root/sys/devices/system/cpu/cpu$cpu/cache/index$index"
      (cd "$root/sys/devices/system/cpu/cpu$cpu/cache/index$index"
        echo $((index == 2 ? 2 : 1)) >level
        if ((index == 2)); then echo "$level2" >size; else echo "$level1" >size; fi)
    done
  done
  echo 0-3 | tee "$root/sys/devices/system/cpu/possible" >"$root/sys/devices/system/cpu/present"
}

count() { # CPU PROGRAM ARGUMENTS... : what the plugin and the program say, on one line
  local cpu=$1
  shift
  # A fixed hash seed and no .pyc written, or start-up would differ from run to run.
  nice -n 19 qemu-aarch64 -cpu "$cpu" -L "root-$cpu" -E PYTHONPATH=site -E PYTHONHASHSEED=0 \
    -E PYTHONDONTWRITEBYTECODE=1 -E OMP_NUM_THREADS=1 -E OPENBLAS_NUM_THREADS=1 \
    -plugin ./icount.so "$@" 2>&1 | tr '\n' ' ' || true
}
# Start-up costs more than many images and varies by some millions: it goes with the difference of
# two counts, far apart where images are small.
row() { # NAME TYPE CPU SIZE COMMAND... (to which the number of images is added)
  local name=$1 type=$2 cpu=$3 size=$4 few=2 many=10 first second
  shift 4
  if ((size > 100)); then few=1 many=3; fi
  first=$(count "$cpu" "$@" "$few")
  second=$(count "$cpu" "$@" "$many")
  awk -v name="$name" -v type="$type" -v cpu="$cpu" -v size="$size" -v images=$((many - few)) \
    -v first="$first" -v second="$second" '
    function of(text, key) {
      if (!match(text, "(^| )" key "=[0-9.na]+")) return ""
      text = substr(text, RSTART, RLENGTH)
      sub(/.*=/, "", text)
      return text
    }
    function millions(key) { return (of(second, key) - of(first, key)) / images / 1e6 }
    BEGIN {
      if (of(first, "total") == "" || of(second, "total") == "") {
        print name, type, cpu, size, "failed:", second
        exit
      }
      error = of(second, "error")
      if (error == "") error = "-"
      printf "| %s | %s | %s | %d | %.1f | %.1f | %.1f | %.1f | %s |\n", name, type, cpu, size,
        millions("total"), millions("simd_dp"), millions("ldst"),
        millions("sdot") + millions("smlal") + millions("smull") + millions("fmla"), error
    }'
}

echo "Millions per image, one thread. Multiply: FMLA (not of f16), SMULL, SMLAL, SDOT."
echo "Error: of the features of one synthetic image, relative to ONNX Runtime f32."
echo "| engine | type | CPU | size | all | SIMD | load/store | multiply | error |"
echo "|---|---|---|---|---|---|---|---|---|"
for size in "${sizes[@]}"; do
  for cpu in ${CPUS:-cortex-a72 cortex-a76}; do
    root_of "$cpu"
    peer() { # NAME TYPE ENGINE MODEL
      row "$1" "$2" "$cpu" "$size" "root-$cpu/usr/bin/python3.11" run.py "$3" "$4" "$size" \
        "$peers/in_${size}_0.bin" "$3-${2//\//-}-$cpu-$size.npy" "onnxruntime-f32-$cpu-$size.npy"
    }
    # First: the others are compared with it.
    peer "ONNX Runtime" f32 onnxruntime "$peers/f32_$size.onnx"
    peer "ONNX Runtime, our base" int8 onnxruntime "$base"
    peer ncnn f32 ncnn "$peers/ncnn_f32"
    peer ncnn int8 ncnn "$peers/ncnn_int8"
    if [ "$cpu" = cortex-a76 ]; then
      peer "ncnn, its own choice" f16 ncnn-f16 "$peers/ncnn_f32"
      peer "ncnn, its own choice" int8/f16 ncnn-f16 "$peers/ncnn_int8"
    fi
    if [ -x edge ]; then
      ours() {
        row "vgg-edge, $1" int8 "$cpu" "$size" \
          ./edge bench --base "$base" --kernel "$1" --threads 1 --size "$size" --runs
      }
      ours neon
      if [ "$cpu" = cortex-a76 ]; then ours sdot; fi
    fi
  done
done
