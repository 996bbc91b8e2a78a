# rollback LEASE DEAD NAME: `current` and `previous` change places.
lease=$1 dead=$2 name=$3
cd "$root" 2>/dev/null || exit 0
acquire "$lease" "$dead"
now=$(target "models/$name/current")
back=$(target "models/$name/previous")
if [ -z "$back" ] || [ "$back" = "$now" ] || [ ! -d "bundles/$back" ]; then
  echo "current $now"
elif sums=$($tool <"bundles/$back.sums") && ! whole "$back" "${sums%% *}"; then
  echo "damaged $back"
else
  point current "$back"
  if [ -n "$now" ]; then point previous "$now"; fi
  echo "switched $now $back"
fi
release
