# active NAME: the manifest of the bundle that a model runs from.
cd "$root" 2>/dev/null || exit 0
if [ -f "models/$1/current/manifest.json" ]; then cat "models/$1/current/manifest.json"; fi
