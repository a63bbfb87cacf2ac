#!/usr/bin/env bash
# Installs into target/guest what the camera tests boot under QEMU: Debian's ARM kernel, the modules
# of two virtual cameras (vivid from the kernel package, v4l2loopback built here), and the device
# tree of the Raspberry Pi 3. A second call does nothing and needs no network. Apart from installed
# tools, it changes nothing outside target/guest.
#   scripts/guest.sh           as scripts/setup.sh test calls it
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/setup.sh disable=SC1091
source scripts/setup.sh none
# depmod is in a directory that is not in the PATH of ordinary users.
PATH=$PATH:/usr/sbin:/sbin

guest=$PWD/target/guest
# Modules that a guest loads, with their dependencies; a kernel with a built-in module has no file.
modules=(vivid v4l2loopback bcm2835_wdt)

give_up() { say "Cannot install target/guest: $*"; exit 1; }

# Prints the dependency of a package that matches a pattern: kernel packages are renamed in each
# release, metapackages are not.
dependency() { # dependency PACKAGE PATTERN
  apt-cache show --no-all-versions "$1" | sed -n 's/^Depends: //p' | grep -oE -m 1 "(^|, )$2" |
    sed 's/^, //' ||
    give_up "$1 depends on nothing like $2"
}

prepare() { # prepare FOLDER
  local work=$1 image version headers common kbuild source
  # shellcheck source=/dev/null
  private_apt "$work/apt" "$(. /etc/os-release && echo "$VERSION_CODENAME")" \
    "$(dpkg --print-architecture)" arm64
  # Without this option an unreachable mirror is only a warning.
  apt-get update -qq -o APT::Update::Error-Mode=any ||
    give_up "no package lists; run ./test again with a network"
  image=$(dependency linux-image-arm64:arm64 'linux-image-[^ ,]+')
  version=${image#linux-image-}
  headers=linux-headers-$version
  common=$(dependency "$headers:arm64" 'linux-headers-[^ ,]+-common')
  kbuild=$(dependency "$headers:arm64" 'linux-kbuild-[^ ,]+')
  (cd "$work" &&
    apt-get download -qq "$image:arm64" "$headers:arm64" "$common" "$kbuild" v4l2loopback-dkms) ||
    give_up "no packages; run ./test again with a network"
  du -ch "$work"/*.deb | sed -n 's/\ttotal$/ downloaded/p' >&2
  for package in "$work"/*.deb; do
    dpkg-deb --extract "$package" "$work/root"
  done

  # The headers refer to their common part and their tools by absolute paths.
  grep -rlE '/usr/(src|lib)/linux-' "$work/root/usr/src/$headers" --include=Makefile \
    --include=.kernelvariables |
    xargs --no-run-if-empty sed -i -E "s#/usr/(src|lib)/linux-#$work/root/usr/\1/linux-#g"
  source=$(echo "$work"/root/usr/src/v4l2loopback-*)
  make --silent -C "$work/root/usr/src/$headers" M="$source" ARCH=arm64 \
    CROSS_COMPILE=aarch64-linux-gnu- \
    modules >"$work/make.log" 2>&1 || {
    tail -n 20 "$work/make.log" >&2
    give_up "v4l2loopback does not build against $headers"
  }

  # In Debian 13, /lib is entirely below /usr.
  [ -e "$work/root/lib" ] || ln -s usr/lib "$work/root/lib"
  mkdir "$work/root/lib/modules/$version/extra"
  cp "$source/v4l2loopback.ko" "$work/root/lib/modules/$version/extra"
  depmod --basedir "$work/root" "$version"
  mkdir "$work/modules"
  load_order "$work/root/lib/modules/$version" |
    copy_modules "$work/root/lib/modules/$version" "$work/modules"
  cp "$work/root/boot/vmlinuz-$version" "$work/vmlinuz"
  cp "$work/root/usr/lib/linux-image-$version/broadcom/bcm2837-rpi-3-b.dtb" "$work"
  rm -r "$work"/{apt,root,make.log} "$work"/*.deb
}

# Prints the paths of the modules in load order; modules.dep lists dependencies in reverse.
load_order() { # load_order FOLDER
  local module line
  for module in "${modules[@]}"; do
    line=$(grep -E "/$module\.ko[^/:]*:" "$1/modules.dep") || {
      grep -q "/$module\.ko" "$1/modules.builtin" ||
        give_up "the kernel package has no module $module"
      continue
    }
    tr ' ' '\n' <<<"${line/:/}" | sed '/^$/d' | tac
  done | awk '!seen[$0]++'
}

# Copies modules, decompressed, with a prefix that gives their order.
copy_modules() { # copy_modules FROM TO
  local path name number=100
  while read -r path; do
    name=$(basename "$path")
    number=$((number + 1))
    case $path in
      *.ko) cp "$1/$path" "$2/$number-$name" ;;
      *.ko.xz) xz --decompress --stdout "$1/$path" >"$2/$number-${name%.xz}" ;;
      *) give_up "$path is packed in a way that scripts/guest.sh does not know" ;;
    esac
  done
}

need_packages qemu-system-aarch64:qemu-system-arm aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu \
  make:make depmod:kmod xz:xz-utils dpkg-deb:dpkg
# A changed recipe is installed again; a failed attempt leaves nothing that looks complete.
recipe=$(sha256sum scripts/guest.sh)
if [ "$(cat "$guest/recipe" 2>/dev/null)" != "$recipe" ]; then
  say "Installing target/guest: Debian's ARM kernel with virtual cameras (90 MB to download)"
  rm -rf "$guest.new"
  mkdir -p "$guest.new"
  prepare "$guest.new"
  echo "$recipe" >"$guest.new/recipe"
  rm -rf "$guest"
  mv "$guest.new" "$guest"
fi
