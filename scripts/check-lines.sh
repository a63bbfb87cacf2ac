#!/usr/bin/env bash
# Lists the lines of tracked files that are over 100 columns, and fails if there are any.
#   scripts/check-lines.sh [PATH ...]
# Rows of Markdown tables and lines with a long URL are exempt.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- .
patterns=()
for extension in rs md sh py html css js toml; do
  for path in "$@"; do
    patterns+=(":(glob)${path%/}/**/*.$extension" ":(glob)${path%/}/*.$extension")
  done
done
# A path may also be a single file.
for path in "$@"; do
  [ ! -f "$path" ] || patterns+=("$path")
done
long=$(
  git ls-files -z -- "${patterns[@]}" |
    LC_ALL=C.UTF-8 xargs -0 --no-run-if-empty grep -nHE '^.{101,}' |
    grep -vE '^[^:]*\.md:[0-9]+:\||https?://[^ ]{50,}' || true
)
[ -n "$long" ] || exit 0
cut -c 1-160 <<<"$long"
echo "scripts/check-lines.sh: $(wc -l <<<"$long") lines are over 100 columns" >&2
exit 1
