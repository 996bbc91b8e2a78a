# activate LEASE NAME DIGEST: the switch, after the self-test.
lease=$1 name=$2 digest=$3
cd "$root"
renew "$lease"
mkdir -p "models/$name"
old=$(target "models/$name/current")
if [ "$old" != "$digest" ]; then
  if [ -n "$old" ] && [ -d "bundles/$old" ]; then point previous "$old"; fi
  renew "$lease"
  point current "$digest"
fi
echo "current $digest"
echo "previous $(target "models/$name/previous")"
collect
release
