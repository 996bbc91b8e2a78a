# write FILE TEXT: as sysfs wants it, in one write.
printf '%s\n' "$2" 2>/dev/null >"$1"
