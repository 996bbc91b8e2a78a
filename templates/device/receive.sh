# receive LEASE, with a tar of objects on stdin.
cd "$root"
renew "$1"
$(named tar) xof -
