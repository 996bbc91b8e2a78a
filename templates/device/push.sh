# sh -c THIS edgepack FILE OFFSET: append stdin to FILE, of which the first OFFSET bytes are kept; prints its size then.
# Exit 65: FILE holds fewer bytes than OFFSET.
export LC_ALL=C
file=$1 offset=$2
size() { stat -c %s "$file" 2>/dev/null || wc -c <"$file"; }
if [ "$offset" = 0 ]; then
  [ ! -f "$file" ] || rm -f "$file" || exit 1  # anew: a writer that a lost link left behind has the old inode
  : >"$file" || exit 1
else
  has=$(size) || exit 1
  [ "$has" -ge "$offset" ] || { echo "$has" >&2; exit 65; }
  [ "$has" -eq "$offset" ] || dd if=/dev/null of="$file" bs=1 seek="$offset" count=0 2>/dev/null || exit 1
fi
cat >>"$file" && size
