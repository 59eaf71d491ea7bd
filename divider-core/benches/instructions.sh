#!/usr/bin/env bash
# Counts the instructions of the planner's hot paths under callgrind, and compares them with what is recorded here.
#
#   divider-core/benches/instructions.sh
#
# A count does not depend on what else the machine does. It does depend on the compiler and the processor it compiles for,
# so the bound (3 % above) holds only for those that it was recorded with; with others the table is printed all the same.
# Ends with 1 where a count is above its bound, with 2 where nothing could be counted. To record anew after a change that
# is meant to be: put the printed counts, and the compiler's name, in the place of those below.
set -euo pipefail
cd "$(dirname "$0")/../.."

recorded_with='1.95.0 x86_64'
declare -A recorded=(
  [full]=4163055
  [full-uneven]=4244480
  [full-mixed]=6952437
  [join]=207433
  [join-uneven]=202641
  [leave]=298267
  [leave-uneven]=370220
  [replace-two]=106351
  [one-key]=2279
  [one-key-uneven]=2348
)

command -v valgrind >/dev/null || { echo 'valgrind is missing: nothing was counted (apt-get install valgrind)' >&2; exit 2; }
here="$(rustc --version | cut -d' ' -f2) $(uname -m)"
binary=$(cargo bench -q -p divider-core --bench instructions --no-run --message-format=json |
  grep -o '"executable":"[^"]*instructions-[^"]*"' | cut -d'"' -f4)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

above=0
printf '| %-14s | %12s | %12s | %5s |\n' case instructions recorded ratio
printf '| %-14s | %12s | %12s | %5s |\n' --- --- --- ---
for name in $("$binary"); do
  valgrind --tool=callgrind --callgrind-out-file="$scratch/$name" --toggle-collect='*measured*' "$binary" "$name" \
    >/dev/null 2>"$scratch/log" || { cat "$scratch/log" >&2; exit 2; }
  count=$(sed -n 's/^.*Collected : \([0-9]*\).*$/\1/p' "$scratch/log")
  [ "${count:-0}" -gt 0 ] || { echo "$name: nothing was counted" >&2; cat "$scratch/log" >&2; exit 2; }
  bound=${recorded[$name]:-0}
  ratio=$(awk "BEGIN { printf \"%.3f\", $bound ? $count / $bound : 0 }")
  printf '| %-14s | %12d | %12d | %5s |\n' "$name" "$count" "$bound" "$ratio"
  if [ "$here" = "$recorded_with" ] && [ $((count * 100)) -gt $((bound * 103)) ]; then
    echo "$name: more than 3 % above what is recorded" >&2
    above=1
  fi
done
if [ "$here" != "$recorded_with" ]; then
  echo "recorded with $recorded_with, counted with $here: no bound was applied"
fi
exit $above
