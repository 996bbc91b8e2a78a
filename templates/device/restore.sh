# sh -c THIS edgepack JOURNAL PREFIX [PID LIMIT DEADLINE CHILD]: put back the clocks that JOURNAL says were changed.
# JOURNAL's first line is "boot ID", the others are "FILE SET BEFORE". With PID: first wait until that process (measure.sh)
# is gone. It is told to end after DEADLINE seconds; the program whose id is in the file CHILD is killed after LIMIT.
export LC_ALL=C
cd / # a bundle that is somebody's folder is not removed
journal=$1 prefix=$2 pid=$3 limit=$4 deadline=$5 child=$6
first() { line=; read -r line 2>/dev/null <"$1"; }
started() { # when a process started: field 22 of stat, where field 2, the name, may hold anything
  first "/proc/$1/stat" || return 1
  set -- ${line##*) }
  [ "$1" != Z ] || return 1 # ended, although its parent hasn't asked yet
  eval "when=\${20}"
}
if [ -n "$pid" ]; then
  trap '' HUP INT
  started "$pid" || pid=
  same=$when now=0 since=0 running=
  while [ -n "$pid" ] && started "$pid" && [ "$when" = "$same" ]; do
    sleep 1
    now=$((now + 1))
    first "$child"
    [ "$line" = "$running" ] || { running=$line since=$now; }
    [ -z "$running" ] || [ $((now - since)) -lt "$limit" ] || kill -KILL "$running"
    [ "$now" -ge "$deadline" ] && kill -TERM "$pid"
    [ "$now" -ge $((deadline + 10)) ] && break
  done
  first "$child" && [ -n "$line" ] && kill -KILL "$line"
fi
if [ -f "$journal" ]; then
  first "$prefix/proc/sys/kernel/random/boot_id"
  boot=$line
  while read -r file set before; do
    if [ "$file" = boot ]; then
      [ "$set" = "${boot:--}" ] || break # the machine was started anew since: the clocks are its own
      continue
    fi
    first "$prefix$file"
    [ "$line" = "$set" ] || echo "moved $file $line"
    { printf '%s\n' "$before" >"$prefix$file"; } 2>/dev/null
    first "$prefix$file"
    if [ "$line" = "$before" ]; then echo "restored $file $before"; else echo "stuck $file $line"; fi
  done <"$journal"
  rm -f "$journal"
fi
if [ -n "$child" ] && [ -f "$child" ]; then
  sleep 1 # what is left of the script may write another one
  rm -f "$child" "${child%.child}.stderr" "${child%.child}.failed"
fi
