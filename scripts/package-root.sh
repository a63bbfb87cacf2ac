#!/usr/bin/env bash
# Installs target/package/root-arm64 and root-armhf: small Debian systems, just large enough for
# dpkg to install a package under qemu-user. tests/tests/e2e/package.rs works on copies of them. A
# second call does nothing and needs no network. Apart from installed tools, it changes nothing
# outside target/package.
#   scripts/package-root.sh           as scripts/setup.sh test calls it
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/setup.sh disable=SC1091
source scripts/setup.sh none

# The oldest supported Debian release, whichever one this machine runs.
codename=bookworm
# dpkg and the commands it calls, the shell and commands of maintainer scripts, and the libraries of
# all these.
packages=(
  dpkg tar dash coreutils diffutils sed grep findutils libc-bin init-system-helpers perl-base
  libc6 libgcc-s1 libacl1 libattr1 libbz2-1.0 libcrypt1 libgmp10 liblzma5 libmd0 libpcre2-8-0 \
    libselinux1 libzstd1 zlib1g
)

give_up() { say "Cannot install target/package: $*"; exit 1; }

prepare() { # prepare ARCH FOLDER
  local work=$2 tree=$2/root package
  private_apt "$work/apt" "$codename" "$1"
  apt-get update -qq || give_up "apt-get update failed; is the network up? Then run ./test again"
  (cd "$work" && apt-get download -qq "${packages[@]}") ||
    give_up "apt-get download failed; is the network up? Then run ./test again"
  unset APT_CONFIG
  # The links of a system with a merged /usr, as debootstrap creates them, then the files.
  mkdir -p "$tree"/{etc,proc,dev,tmp,run,usr/{bin,sbin,lib},var/lib/dpkg/{info,updates},var/log}
  ln -s usr/bin usr/sbin usr/lib "$tree"
  for package in "$work"/*.deb; do
    dpkg-deb --fsys-tarfile "$package" |
      tar --extract --keep-directory-symlink --no-same-owner --directory "$tree" \
      --exclude './usr/share/[!d]*' --exclude './usr/share/doc*'
  done
  ln -sf dash "$tree/usr/bin/sh"
  echo "root:x:0:0:root:/root:/bin/sh" >"$tree/etc/passwd"
  echo "root:x:0:" >"$tree/etc/group"
  : >"$tree/var/lib/dpkg/status"
  : >"$tree/var/lib/dpkg/available"
}

need_packages proot:proot dpkg-deb:dpkg readelf:binutils systemd-analyze:systemd \
  qemu-aarch64-static:qemu-user-static python3:python3
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] ||
  need_packages none-such-d:debian-archive-keyring
for arch in arm64 armhf; do
  made=$PWD/target/package/root-$arch
  # The contents of the root; delete a damaged root by hand.
  wanted="$codename ${packages[*]}"
  [ "$(cat "$made/.packages" 2>/dev/null)" = "$wanted" ] && continue
  say "Fetching a small Debian for $arch into target/package"
  mkdir -p target/package
  work=$(mktemp -d "$PWD/target/package/.fetching.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  prepare "$arch" "$work"
  echo "$wanted" >"$work/root/.packages"
  rm -rf "$made"
  mv "$work/root" "$made"
  rm -rf "$work"
  trap - EXIT
done
