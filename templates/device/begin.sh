# begin LEASE DEAD, with the bundle's "SHA256  NAME" lines on stdin: take the lock and say which of these objects are
# there. A lease of 0 takes no lock and changes nothing.
lease=$1 dead=$2
list=$(cat)
if [ "$lease" -gt 0 ]; then
  mkdir -p "$root"
  cd "$root"
  acquire "$lease" "$dead"
  rm -rf stage
  mkdir -p objects bundles models stage
  echo "$list" | cat >stage/sums
  if ln stage/sums stage/link 2>/dev/null; then echo "links yes"; else echo "links no"; fi
else
  cd "$root" 2>/dev/null || exit 0
fi
wanted() { echo "$list" | cut -c1-64 | sort -u; }
wanted | while read -r sum; do
  if [ -f "objects/$sum" ]; then echo "objects/$sum"; fi
done | hashes | while read -r sum path; do
  if [ "$path" = "objects/$sum" ]; then
    echo "have $sum"
  elif [ "$lease" -gt 0 ]; then
    rm -f "$path" # damaged since it was stored
  fi
done
wanted | while read -r sum; do
  if [ -f "objects/$sum.part" ]; then echo "part $sum $(($(wc -c <"objects/$sum.part")))"; fi
done
if df -kP . >/dev/null 2>&1; then
  set -- $(df -kP . | tail -n 1)
  echo "free $4"
fi
