# Every install script begins with this. POSIX sh with the tools of busybox or toybox; arguments are data.
# $1 is edgepack's folder on the device, $2 this session's name for its lock; the rest is the script's own.
set -eu
umask 022
export LC_ALL=C
root=$1 mine=$2
shift 2

# fsync of one file is not everywhere; flushing the file system is, and covers its folders too.
flush() { sync -f . 2>/dev/null || sync; }

named() { # the words that run a tool, which may be a part of a toolbox without a name of its own
  command -v "$1" >/dev/null 2>&1 || for box in busybox toybox; do
    if "$box" "$1" --help >/dev/null 2>&1; then
      set -- "$box $1"
      break
    fi
  done
  echo "$1"
}
tool=$(named sha256sum)
hashes() { xargs -r $tool; } # file names on stdin, none with a blank -> "SHA256  NAME" lines

# whole DIGEST SUMS: every file of the bundle has the bytes that were built. SUMS is the hash of "SHA256  NAME" lines.
whole() {
  [ -f "bundles/$1.sums" ] || return 1
  found=$(cut -c67- "bundles/$1.sums" | (cd "bundles/$1" 2>/dev/null && hashes 2>/dev/null) | $tool)
  [ "${found%% *}" = "$2" ]
}

target() { # the digest that a link of models/ points to
  link=$(readlink "$1" 2>/dev/null) || link=
  echo "${link##*/}"
}

# The lock is a symbolic link whose text is OWNER:BOOT:DEADLINE: made in one step, text and all. The deadline is in
# seconds of uptime, which no change of the clock moves, and a reboot ends every lease.
up=0 boot=
if [ -r /proc/uptime ]; then read -r up boot </proc/uptime; fi
up=${up%%.*}
boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null) || boot=

busy() {
  echo "busy $text $up"
  exit 9
}

replace_lock() { # $1: lease in seconds
  rm -f "lock.${mine##*,}"
  ln -s "$mine:$boot:$((up + $1))" "lock.${mine##*,}"
  mv -f "lock.${mine##*,}" lock
}

over() { # is the lease of the lock $text over?
  rest=${text#*:}
  [ "${rest%:*}" != "$boot" ] || [ "$up" -gt "${rest##*:}" ] || [ "${rest##*:}" -gt $((up + 86400)) ]
}

# Only one script at a time is in one of the next three, whose stdin is the folder that they are in. Not every busybox
# has flock; there, who takes a lock over waits a second to see whether another one did the same.
acquire() ( # $1: lease in seconds, $2: the text of a lock whose owner is known to be dead
  if flock 0 2>/dev/null; then alone=yes; else alone=; fi
  for try in 1 2 3 4 5; do
    if ln -s "$mine:$boot:$((up + $1))" lock 2>/dev/null; then exit; fi
    text=$(readlink lock) || text=
    [ -z "$text" ] || break # else it was released just now
  done
  [ -n "$text" ] || ln -s "$mine:$boot:$((up + $1))" lock # says why it can't
  if [ -n "$text" ] && [ "${text%%:*}" != "$mine" ]; then
    if [ "$text" != "$2" ] && ! over; then busy; fi
    replace_lock "$1"
    [ -n "$alone" ] || sleep 1 # two may have seen the old lock at once: the one who wrote last has it
  else
    replace_lock "$1"
  fi
  check_lock
) <.

check_lock() {
  text=$(readlink lock) || text=
  [ "${text%%:*}" = "$mine" ] || busy
}

renew() ( # $1: lease in seconds
  flock 0 2>/dev/null || :
  check_lock
  replace_lock "$1"
) <.

release() ( # gives the lock back, and before that removes these folders where they are empty
  flock 0 2>/dev/null || :
  text=$(readlink lock) || text=
  if [ "${text%%:*}" = "$mine" ]; then
    rmdir "$@" 2>/dev/null || :
    rm -rf stage lock.* lock
  fi
) <.
