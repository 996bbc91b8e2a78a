# sh -c THIS edgepack ROOT FOLDER PREFIX GOVERN LIMIT DEADLINE COOL PATIENCE MASK RESTORE ORDER [COUNT ARGV...]...
# Measures: runs the programs that ORDER lists ("0 1 1 0") in FOLDER, a bundle, one after another, and says how the
# machine is before, between and after. Each program is COUNT words. With GOVERN=yes the clocks are set to their highest
# and put back at the end, whatever the end is: by this script, or by restore.sh (its text is RESTORE) in a session of
# its own when this script is killed or a program runs for more than LIMIT seconds, or all for more than DEADLINE. First
# waits until no thermal zone is above COOL millidegrees, for at most PATIENCE seconds. MASK is taskset's, or empty.
# PREFIX stands in front of /proc and /sys (tests). Only what dash, busybox, toybox and mksh have.
export LC_ALL=C
case $1 in /*) root=$1 ;; *) root=$PWD/$1 ;; esac
folder=$2 prefix=$3 govern=$4 limit=$5 deadline=$6 cool=$7 patience=$8 mask=$9
shift 9
restore=$1 order=$2
shift 2
own=$root/bench.$$ child= guard= policies= zones= coolings= set_mask=
journal=$own.restore

say() { printf '%s\n' "$*" || exit 141; } # 141: nobody listens any more
first() { line=; read -r line 2>/dev/null <"$1"; } # the first line of a file, or nothing
finish() {
  trap '' HUP INT TERM PIPE
  if [ -n "$child" ]; then
    first "$own.child" && kill -KILL "$line" 2>/dev/null
    kill -KILL "$child" 2>/dev/null
  fi
  [ ! -f "$journal" ] || sh -c "$restore" edgepack "$journal" "$prefix"
  rm -f "$own.child" "$own.stderr" "$own.failed"
}
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 141' PIPE

say "edgepack-measure 1"
{ mkdir -p "$root" && : >"$own.child"; } 2>/dev/null || exit 68
rm -f "$own.child"
for left in "$root"/bench.*.restore; do # of a run whose process is gone, and its guard too
  [ -f "$left" ] || continue
  pid=${left%.restore} pid=${pid##*/bench.}
  [ -d "/proc/$pid" ] || { say leftover "$left"; sh -c "$restore" edgepack "$left" "$prefix"; }
done
cd "$folder" || exit 66

# What there is to watch.
cpus=$prefix/sys/devices/system/cpu thermal=$prefix/sys/class/thermal
for policy in "$cpus"/cpufreq/policy[0-9]*; do
  [ -d "$policy" ] || continue
  policies="$policies $policy"
  first "$policy/cpuinfo_max_freq"; top=${line:-0}
  first "$policy/scaling_governor"; governor=${line:--}
  first "$policy/related_cpus"
  say policy "${policy##*/policy}" "$top" "$governor" "$line"
done
for zone in "$thermal"/thermal_zone[0-9]*; do
  [ -d "$zone" ] || continue
  zones="$zones $zone" trip=0
  for kind in "$zone"/trip_point_*_type; do # the lowest temperature at which the kernel slows the machine down
    first "$kind"
    [ "$line" = passive ] || continue
    first "${kind%_type}_temp"
    [ "${line:-0}" -gt 0 ] && { [ "$trip" = 0 ] || [ "$line" -lt "$trip" ]; } && trip=$line
  done
  first "$zone/type"
  say zone "$trip" "$line"
done 2>/dev/null
for cooling in "$thermal"/cooling_device[0-9]*; do
  [ -d "$cooling" ] || continue
  coolings="$coolings $cooling"
  first "$cooling/max_state"; most=${line:-0}
  first "$cooling/type"
  say cooling "$most" "$line"
done
# Firmware that slows the machine without telling the kernel: the Raspberry Pi's flags, Intel's counter.
flags="$prefix/sys/devices/platform/soc/soc:firmware/get_throttled $cpus/cpu0/thermal_throttle/package_throttle_count"

each() { # NAME FILE FOLDER...: this file of all folders
  text="$1" file=$2
  shift 2
  for each in "$@"; do
    first "$each${file:+/$file}"
    text="$text ${line:--}"
  done
  state="$state;$text"
}
look() {
  first "$prefix/proc/uptime"; state="state ${line%% *}" now=${line%%.*}
  first "$prefix/proc/loadavg"; state="$state ${line%% *}"
  each clock scaling_cur_freq $policies
  each most scaling_max_freq $policies
  each temp temp $zones
  each cool cur_state $coolings
  each flag "" $flags
  say "$state"
}

look
# Cool down to a condition, not for a while.
waited=0
while [ "$waited" -lt "$patience" ]; do
  hot=
  for zone in $zones; do
    first "$zone/temp"
    [ "${line:-0}" -gt "$cool" ] 2>/dev/null && hot=yes
  done
  [ -n "$hot" ] || [ -z "$zones" ] || break
  sleep 1
  waited=$((waited + 1))
done
[ "$patience" = 0 ] || { say cooled "$waited"; look; }

# Clocks: only where somebody else can put them back if this script is killed.
change() { # FILE VALUE
  first "$1" || return 1
  [ "$line" != "$2" ] || return 0
  printf '%s %s %s\n' "${1#"$prefix"}" "$2" "$line" >>"$journal" || return 1
  { printf '%s\n' "$2" >"$1"; } 2>/dev/null
  first "$1"
  [ "$line" = "$2" ]
}
watch() {
  command -v setsid >/dev/null 2>&1 || return
  # A grandchild, so that who kills this script with all its children doesn't find it.
  (setsid sh -c "$restore" edgepack "$journal" "$prefix" $$ "$limit" "$deadline" "$own.child" \
    >/dev/null 2>&1 </dev/null &)
  guard=yes
}
first "$prefix/proc/sys/kernel/random/boot_id"
if [ "$govern" = yes ] && [ -n "$policies" ]; then
  printf 'boot %s\n' "${line:--}" >"$journal" || exit 68
  watch
  if [ -z "$guard" ]; then
    say refused - "there is no setsid, without which nobody could put the clocks back if the link is lost"
  else
    for policy in $policies; do
      first "$policy/scaling_available_governors"
      case " $line " in
        *" performance "*) file=$policy/scaling_governor value=performance ;;
        *) first "$policy/scaling_max_freq"; file=$policy/scaling_min_freq value=$line ;;
      esac
      if change "$file" "$value"; then say set "${file#"$prefix"}" "$value"; else say refused "${file#"$prefix"}" "$value"; fi
    done
  fi
fi
[ -n "$guard" ] || watch # it also ends a program that hangs

if [ -n "$mask" ]; then
  taskset "$mask" sh -c : || exit 67
  set_mask="taskset $mask"
fi
$set_mask sh -c 'while read -r key value; do [ "$key" != Cpus_allowed_list: ] || echo "allowed $value"; done </proc/self/status'

block() { # INDEX [COUNT ARGV...]...
  say block "$1"
  index=$1
  shift
  while [ "$index" -gt 0 ]; do
    shift $(($1 + 1))
    index=$((index - 1))
  done
  count=$1 turned=0
  shift
  rest=$(($# - count))
  while [ "$turned" -lt "$count" ]; do # the first COUNT words go to the end, then all others away
    set -- "$@" "$1"
    shift
    turned=$((turned + 1))
  done
  shift "$rest"
  {
    $set_mask "$@" 2>"$own.stderr" &
    echo $! >"$own.child"
    wait $!
    code=$?
    echo "exit $code"
    [ "$code" = 0 ] || : >"$own.failed"
  } | sed 's/^{"type":"sample",.*"ns":\([0-9]*\)}$/\1/' &
  child=$!
  wait "$child"
  child=
  rm -f "$own.child"
  [ ! -s "$own.stderr" ] || tail -n 20 "$own.stderr" | sed 's/^/stderr /'
}
look
begun=${now:-0}
for which in $order; do
  block "$which" "$@"
  look
  [ ! -f "$own.failed" ] || break # the others are measured without this program
  [ $((${now:-0} - begun)) -lt $((deadline - limit)) ] || break # the host asks for the rest
done
[ ! -f "$journal" ] || sh -c "$restore" edgepack "$journal" "$prefix"
say end
