# abandon LEASE: a bundle that failed its self-test goes, with all that only it needs.
cd "$root"
renew "$1"
collect
release
