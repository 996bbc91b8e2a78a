# commit LEASE DIGEST SUMS: check what arrived since `begin` and put the bundle together.
lease=$1 digest=$2
cd "$root"
renew "$lease"
found=$($tool <stage/sums)
[ "${found%% *}" = "$3" ]
rm -rf "bundles/$digest.new" stage/arrived stage/bad stage/link

cut -c1-64 stage/sums | sort -u | while read -r sum; do
  if [ ! -f "objects/$sum" ]; then echo "$sum"; fi
done >stage/arrived
while read -r sum; do
  if [ -f "objects/$sum.part" ]; then echo "objects/$sum.part"; else echo "missing $sum" >>stage/bad; fi
done <stage/arrived | hashes | while read -r sum path; do
  if [ "$path" != "objects/$sum.part" ]; then
    rm -f "$path"
    path=${path#objects/}
    echo "missing ${path%.part}" >>stage/bad
  fi
done
if [ -f stage/bad ]; then
  cat stage/bad
  exit 0
fi
flush # the bytes, before the names that say what they are
while read -r sum; do mv -f "objects/$sum.part" "objects/$sum"; done <stage/arrived

tree=bundles/$digest
[ -d "$tree" ] || tree=bundles/$digest.new
mkdir -p "$tree"
cut -c67- stage/sums | sed -n 's|/[^/]*$||p' | sort -u | (cd "$tree" && xargs -r mkdir -p)
# Of a bundle that is there already (damaged, or from a deploy that was cut short) only what is wrong.
{ echo none; cut -c67- stage/sums | (cd "$tree" && hashes 2>/dev/null) || :; } >stage/right
grep -vxFf stage/right stage/sums | while read -r sum path; do
  rm -f stage/file
  ln "objects/$sum" stage/file 2>/dev/null || cp "objects/$sum" stage/file
  case $path in bin/* | lib/*) chmod 755 stage/file ;; esac
  mv -f stage/file "$tree/$path"
done
mv -f stage/sums "bundles/$digest.sums"
flush # the bundle, before its name
if [ "$tree" != "bundles/$digest" ]; then mv "$tree" "bundles/$digest"; fi
rm -rf stage
flush
echo "committed $digest"
