#!/usr/bin/env bash
# Fresh clone to first label: clones this repository into an empty folder, runs `make demo` with empty caches, and says
# the seconds until the first label was printed.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
git clone --quiet --no-hardlinks "$root" "$work/clone"
cd "$work/clone"
export XDG_CACHE_HOME="$work/cache" PIP_NO_CACHE_DIR=1
started=$(date +%s.%N)
# Piped, the demo prints one JSON line an image.
make demo 2>"$work/progress" | while IFS= read -r line; do
    if [[ -z "${first:-}" && "$line" == '{'* ]]; then
        first=1
        python3 -c "import sys, time; print('{\"figure\": \"fresh_clone\", \"seconds_to_first_label\": %.1f, \"target\": \"< 120\"}' % (time.time() - float(sys.argv[1])))" "$started"
    fi
done || { tail -20 "$work/progress" >&2; exit 1; }
