#!/usr/bin/env bash
# Installs the required tools, and reports what it installs. Sourced by ./demo and ./test; safe to
# repeat.
#   setup.sh demo   a C compiler, and libclang, with which the crate v4l reads the kernel's headers
#   setup.sh test   also cross compilers, QEMU, the Rust targets for ARM, a browser, Slurm, and the
#                   systems that the tests boot and install into
set -euo pipefail

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }
[ -t 2 ] && [ -z "${NO_COLOR:-}" ] || say() { printf '%s\n' "$*" >&2; }

need_packages() { # need_packages COMMAND:PACKAGE ...
  local missing=() pair
  for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if ! command -v apt-get >/dev/null; then
    say "Please install: ${missing[*]} (this script knows Debian's apt-get only)"
    exit 1
  fi
  say "Installing Debian packages: ${missing[*]}"
  local root=()
  [ "$(id -u)" = 0 ] || root=(sudo)
  "${root[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${root[@]}" apt-get install -y -qq --no-install-recommends \
    "${missing[@]}" >/dev/null
}

# The tests compare the integer base with ONNX Runtime, and read output files with NumPy as users
# would. kubernetes-validate contains the schemas of Kubernetes.
python_packages() {
  local wanted=target/python/wanted \
    packages="numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 kubernetes-validate==1.37.0"
  [ "$(cat "$wanted" 2>/dev/null)" = "$packages" ] && return 0
  python3 -c 'import ensurepip, venv' 2>/dev/null || need_packages none-such-c:python3-venv
  say "Installing into target/python: $packages"
  rm -rf target/python
  python3 -m venv target/python
  # shellcheck disable=SC2086
  target/python/bin/python3 -m pip install --quiet --disable-pip-version-check $packages
  echo "$packages" >"$wanted"
}

# Sets up a private apt for the commands that follow: it changes no lists, cache and architectures
# of the system, and needs no root. Mirror, proxies and checks are those of the system. The first
# architecture is the default.
private_apt() { # private_apt FOLDER CODENAME ARCH ...
  local folder=$1 codename=$2 mirror
  shift 2
  # Security updates come from a separate mirror, which has no other packages.
  # shellcheck disable=SC2016
  mirror=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' 'Created-By: Packages' \
    2>/dev/null |
    sed -n '/security/d; s/^Debian //p' | sort -u | head -n 1)
  mkdir -p "$folder"/{state/lists/partial,cache/archives/partial,none}
  : >"$folder/status"
  local keys=/usr/share/keyrings/debian-archive-keyring.gpg
  echo "deb [signed-by=$keys] ${mirror:-http://deb.debian.org/debian} $codename main" \
    >"$folder/sources.list"
  {
    apt-config dump | grep -E '^Acquire::(https?|Check|Retries)' || true
    cat <<CONFIG
APT::Architecture "$1";
APT::Architectures { $(printf '"%s"; ' "$@")};
APT::Sandbox::User "$(id -un)";
Acquire::Languages "none";
Acquire::GzipIndexes "true";
Dir::State "$folder/state";
Dir::State::status "$folder/status";
Dir::Cache "$folder/cache";
Dir::Etc::sourcelist "$folder/sources.list";
Dir::Etc::sourceparts "$folder/none";
Dir::Etc::parts "$folder/none";
Dir::Etc::main "$folder/none/apt.conf";
Dir::Etc::preferences "$folder/none/preferences";
Dir::Etc::preferencesparts "$folder/none";
CONFIG
  } >"$folder/apt.conf"
  export APT_CONFIG=$folder/apt.conf
}

setup() {
  need_packages cc:gcc
  # libclang-cpp, which other packages install, is a different library.
  compgen -G '/usr/lib/llvm-*/lib/libclang[.-][s0-9]*' >/dev/null ||
    compgen -G '/usr/lib/*/libclang[.-][s0-9]*' >/dev/null ||
    need_packages none-such-d:libclang-dev
  if ! command -v cargo >/dev/null; then
    say "Rust is missing: install it from https://rustup.rs, then run this again"
    exit 1
  fi
  [ "$1" = test ] || return 0
  need_packages \
    aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu arm-linux-gnueabihf-gcc:gcc-arm-linux-gnueabihf \
    qemu-aarch64-static:qemu-user-static python3:python3 chromium:chromium minisign:minisign \
    strace:strace \
    setpriv:util-linux
  # A Slurm cluster for the tests, which use their own configuration and start the daemons
  # themselves.
  PATH=$PATH:/usr/sbin:/sbin need_packages slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client \
    munged:munge
  # The headers of the C libraries are separate packages.
  [ -e /usr/aarch64-linux-gnu/include/stdio.h ] &&
    [ -e /usr/arm-linux-gnueabihf/include/stdio.h ] || {
    say "Installing Debian packages: libc6-dev-arm64-cross libc6-dev-armhf-cross"
    need_packages none-such-a:libc6-dev-arm64-cross none-such-b:libc6-dev-armhf-cross
  }
  local targets
  targets=$(rustup target list --installed)
  for target in aarch64-unknown-linux-musl armv7-unknown-linux-gnueabihf; do
    grep -qx "$target" <<<"$targets" ||
      { say "Adding Rust target $target"; rustup target add "$target"; }
  done
  python_packages
  bash scripts/package-root.sh
  bash scripts/guest.sh
}

setup "${1:-demo}"
