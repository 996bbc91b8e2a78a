# harness LEASE DIGEST PROGRAM ARGUMENTS: in the bundle's folder, which is then in use until the program ends.
# A lease of 0 leaves the lock as it is.
cd "$root"
if [ "$1" -gt 0 ]; then renew "$1"; fi
cd "bundles/$2"
shift 2
exec "$@"
