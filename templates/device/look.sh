# look NAME DIGEST SUMS: what is there of a model and its bundle. Changes nothing.
name=$1 digest=$2 sums=$3
cd "$root" 2>/dev/null || exit 0
echo "current $(target "models/$name/current")"
echo "previous $(target "models/$name/previous")"
if [ -L lock ]; then echo "locked yes"; fi # by somebody at work, or by one who was killed
if [ -d "bundles/$digest" ] && whole "$digest" "$sums"; then echo "whole $digest"; fi
