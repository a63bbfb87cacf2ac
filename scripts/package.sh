#!/usr/bin/env bash
# Builds target/package/vgg-edge_VERSION_ARCH.deb: the program, the base, settings, a systemd unit.
#   scripts/package.sh arm64|armhf|amd64 [--program FILE] [--revision N] [--output DIR]
#     --program FILE   package this edge instead of building one
#     --revision N     Debian revision [default: 1], for changes within a version
#     --output DIR     output directory [default: target/package]
# Prints the path of the package. The same commit gives the same bytes: times are those of the
# commit, or SOURCE_DATE_EPOCH. Written with dpkg-deb, which every Debian has. cargo-deb supports
# fewer of the features below (licenses, reproducible sizes) and takes minutes to compile.
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C TZ=UTC
umask 022

give_up() { echo "scripts/package.sh: $*" >&2; exit 2; }

arch=${1:-} revision=1 program='' out=target/package
case "$arch" in
  # The ELF machine in readelf's notation, for the check below.
  arm64) target=aarch64-unknown-linux-musl machine=AArch64 ;;
  armhf) target=armv7-unknown-linux-gnueabihf machine=ARM ;;
  # Static glibc, as for armhf, which needs no additional target or C compiler. A named target has
  # its own directory, so these flags do not rebuild target/release.
  amd64)
    target=x86_64-unknown-linux-gnu machine='Advanced Micro Devices X86-64'
    export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static"
    ;;
  *) give_up \
    "usage: scripts/package.sh arm64|armhf|amd64 [--program FILE] [--revision N] [--output DIR]" ;;
esac
shift
while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || give_up "$1 needs a value"
  case "$1" in
    --program) program=$2 ;;
    --revision) revision=$2 ;;
    --output) out=$2 ;;
    *) give_up "no such option: $1" ;;
  esac
  shift 2
done
[[ $revision =~ ^[0-9][A-Za-z0-9.+~]*$ ]] || give_up "a revision is a number, not $revision"
for tool in dpkg-deb readelf python3 cargo; do
  command -v "$tool" >/dev/null || give_up "$tool is missing; run: bash scripts/setup.sh test"
done
if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) ||
    give_up "no commit gives the time; set SOURCE_DATE_EPOCH"
fi
export SOURCE_DATE_EPOCH

if [ -z "$program" ]; then
  cargo build --quiet --locked --release --package edge --target "$target"
  program=${CARGO_TARGET_DIR:-target}/$target/release/edge
fi
readelf --file-header "$program" | grep -q "Machine: *$machine\$" ||
  give_up "$program is not a program for $arch"
# The package has no dependencies, so the program must be static.
! readelf --program-headers --wide "$program" | grep -q INTERP || give_up "$program is not static"

# In Debian, 0.2.0-rc.1 sorts before 0.2.0 only with a tilde.
version=$(sed -n '/^\[workspace.package\]/,/^\[/ s/^version = "\(.*\)"/\1/p' Cargo.toml)
[ -n "$version" ] || give_up "Cargo.toml has no version"
version=${version/-/\~}-$revision
maintainer="${DEBFULLNAME:-The vgg-edge authors} <${DEBEMAIL:-vgg-edge@localhost.localdomain}>"

mkdir -p "$out"
work=$(mktemp -d "$out/.making.XXXXXX")
trap 'rm -rf "$work"' EXIT
tree=$work/tree
doc=$tree/usr/share/doc/vgg-edge
put() { # put MODE FILE PATH
  install -D -m "$1" "$2" "$tree/$3"
}

put 755 "$program" usr/bin/edge
put 644 models/vgg16-notop-int8.onnx usr/share/vgg-edge/vgg16-notop-int8.onnx
put 644 packaging/edge.toml etc/vgg-edge/edge.toml
# /usr/lib, not /lib: both are the same since Debian 12, and Debian 13 requires this name. A file
# that moves between the two from one version of a package to the next could get lost, so the
# permanent name is used from the start.
put 644 packaging/vgg-edge.service usr/lib/systemd/system/vgg-edge.service
[ "$arch" != armhf ] ||
  put 644 packaging/armhf.conf usr/lib/systemd/system/vgg-edge.service.d/armhf.conf
put 644 packaging/http.conf usr/share/doc/vgg-edge/examples/http.conf
put 644 packaging/copyright usr/share/doc/vgg-edge/copyright
put 644 packaging/README.Debian usr/share/doc/vgg-edge/README.Debian
put 644 CHANGELOG.md usr/share/doc/vgg-edge/changelog
put 644 packaging/deb/lintian-overrides usr/share/lintian/overrides/vgg-edge
packaging/third_party.py "$target" >"$doc/third-party.txt"
cat >"$doc/changelog.Debian" <<CHANGELOG
vgg-edge ($version) unstable; urgency=medium

  * What changed is in changelog.gz.

 -- $maintainer  $(date --rfc-email --date "@$SOURCE_DATE_EPOCH")
CHANGELOG
gzip --best --no-name "$doc"/{changelog,changelog.Debian,third-party.txt}

# Installed-Size as dpkg-gencontrol counts it, in KiB; du would count the blocks of this file
# system.
size=$(find "$tree" -type f -printf '%s\n' -o -printf '1024\n' |
  awk '{ sum += int(($1 + 1023) / 1024) } END { print sum }')
mkdir "$tree/DEBIAN"
for script in postinst prerm postrm; do
  put 755 "packaging/deb/$script" "DEBIAN/$script"
done
put 644 packaging/deb/conffiles DEBIAN/conffiles
(cd "$tree" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort --zero-terminated |
  xargs -0 md5sum) \
  >"$tree/DEBIAN/md5sums"
cat >"$tree/DEBIAN/control" <<CONTROL
Package: vgg-edge
Version: $version
Architecture: $arch
Maintainer: $maintainer
Installed-Size: $size
Section: science
Priority: optional
Description: image classifier that runs live on a camera
 Classifies camera frames, images and video with a small network that the
 program host trained on a workstation, on top of an int8 VGG16, which is
 included. One static program, the same results on every processor, and a
 systemd service in a sandbox without network and file access.
 .
 It requires a head: the file that host train writes.
CONTROL

# The package must not depend on the file system or the umask.
find "$tree" -type d -exec chmod 755 {} +
chmod 644 "$tree"/DEBIAN/{control,md5sums}
find "$tree" -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +
# gzip, because weights hardly compress: xz takes 13 s here, and even longer to unpack on a small
# board, for a size reduction of a tenth.
deb=vgg-edge_${version}_$arch.deb
dpkg-deb --root-owner-group -Zgzip -z9 --build "$tree" "$work/$deb" >/dev/null
mv "$work/$deb" "$out/$deb"
echo "$out/$deb"
