# release [RUN]: what arrived stays for the next try; RUN is a folder of `edgepack run` that is done with.
cd "$root" 2>/dev/null || exit 0
if [ $# -gt 0 ]; then rm -rf "runs/$1"; fi
release runs objects bundles models
