# folder LEASE FOLDER: make a folder.
cd "$root"
renew "$1"
mkdir -p "$2"
