# lock LEASE DEAD: take the lock and nothing else.
cd "$root"
acquire "$1" "$2"
