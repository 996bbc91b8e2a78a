# read FILES: each file's text, after a line with its number. Those that can't be read are left out.
cd /
number=0
for file; do
  if text=$(cat "$file" 2>/dev/null); then printf '\001%d\n%s\n' "$number" "$text"; fi
  number=$((number + 1))
done
