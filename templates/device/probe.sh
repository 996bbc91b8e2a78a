# sh -c THIS edgepack ROOT [PREFIX]: everything that edgepack asks of a device, in one go, one "key value" a line.
# ROOT is edgepack's folder there, which need not exist yet; PREFIX stands in front of /proc, /sys, /dev, /lib (tests).
# Only what dash, busybox, toybox and mksh all have; whatever isn't there is left out. Nothing stays changed.
export LC_ALL=C
root=$1 prefix=$2
say() { [ -z "$2" ] || printf '%s %s\n' "$1" "$2"; }
first() { line=; read -r line 2>/dev/null <"$1"; }  # the first line of a file, or nothing
has() { command -v "$1" >/dev/null 2>&1; }

echo "edgepack-probe 1"
say machine "$(uname -m)"
say kernel "$(uname -r)"
say clock "$(date +%s)"

# The system and its C library.
if has getprop && [ -n "$(getprop ro.build.version.sdk)" ]; then
  say os android
  say libc "bionic $(getprop ro.build.version.sdk)"
else
  say os linux
  for loader in "$prefix"/lib/ld-musl-*.so.1; do
    [ -e "$loader" ] && musl=$("$loader" 2>&1 | while read -r word rest; do [ "$word" = Version ] && echo "$rest"; done)
    [ -e "$loader" ] && say libc "musl $musl"
  done
  [ -z "$prefix" ] && has getconf && say libc "$(getconf GNU_LIBC_VERSION 2>/dev/null)"
  # Programs ask for glibc by its loader's name: it also tells a 32-bit system under a 64-bit kernel.
  for loader in "$prefix"/lib/ld-linux*.so.* "$prefix"/lib64/ld-linux*.so.*; do
    [ -e "$loader" ] || continue
    say loader "${loader##*/} $("$loader" --version 2>/dev/null | while read -r line; do
      case $line in ld.so*version*) line=${line##*version } && echo "${line%.}" ;; esac
    done)"
  done
  for folder in "$prefix"/usr/lib/*-linux-gnu* "$prefix"/lib/*-linux-gnu* "$prefix"/usr/lib64 "$prefix"/lib64 \
    "$prefix"/usr/lib "$prefix"/lib; do
    for library in libc.so.6 libstdc++.so.6; do
      [ -e "$folder/$library" ] || continue
      file=$(readlink -f "$folder/$library")
      say library "${file##*/}"
    done
  done
fi

# The CPU: what /proc/cpuinfo says of each core, and the clocks.
while IFS=: read -r key value; do
  key=${key%"${key##*[! 	]}"} value=${value# }
  case $key in
    processor) core=$value ;;
    Features | flags | isa) [ -n "$features" ] || { features=$value; say features "$value"; } ;;
    "CPU implementer") implementer=$value ;;
    "CPU part") say part "$core $implementer $value" ;;
    "model name") [ -n "$model" ] || { model=$value; say model "$value"; } ;;
  esac
done 2>/dev/null <"$prefix/proc/cpuinfo"
for cpu in "$prefix"/sys/devices/system/cpu/cpu[0-9]*; do
  [ -d "$cpu" ] || continue
  first "$cpu/cpufreq/cpuinfo_max_freq"; clock=${line:-0}
  first "$cpu/cpufreq/scaling_governor"
  say cpu "${cpu##*/cpu} $clock $line"
done

while read -r key value rest; do
  case $key in MemTotal:) say memory_kb "$value" ;; esac
done 2>/dev/null <"$prefix/proc/meminfo"
for zone in "$prefix"/sys/class/thermal/thermal_zone[0-9]*; do
  first "$zone/type"; kind=$line
  first "$zone/temp"
  [ -n "$line" ] && say temperature "$line $kind"
done

boxed() { has "$1" || busybox "$1" --help >/dev/null 2>&1 || toybox "$1" --help >/dev/null 2>&1; }
for tool in sha256sum tar; do
  boxed "$tool" && tools="$tools $tool"
done
for tool in sync flock taskset toybox busybox stat df mv ln dd timeout nice chmod; do
  has "$tool" && tools="$tools $tool"
done
say tools "${tools# }"
for npu in /dev/rknpu /sys/bus/platform/drivers/RKNPU /dev/apex_0 /dev/hailo0 /dev/ethosu0 /dev/galcore \
  /dev/nvhost-nvdla0 /dev/accel/accel0 /sys/bus/platform/drivers/meson-vipnanoq; do
  [ -e "$prefix$npu" ] && { say npu "${npu##*/}"; break; }
done

# The folder: its nearest parent that exists must take a file, which must be allowed to run.
case $root in /*) folder=$root ;; *) folder=$PWD/$root ;; esac
say root "$folder"
while [ ! -d "$folder" ] && [ "$folder" != "" ]; do folder=${folder%/*}; done
folder=${folder:-/}
df -Pk "$folder" 2>/dev/null | {
  read -r line
  read -r device blocks used available rest
  say free_kb "$available"
}
trial="$folder/.edgepack-probe-$$"
if { printf '#!%s\nexit 0\n' "$(command -v sh)" >"$trial"; } 2>/dev/null; then
  say writable yes
  chmod 700 "$trial"
  if "$trial" 2>/dev/null; then say noexec no; else say noexec yes; fi
  rm -f "$trial"
  if ln -s . "$trial" 2>/dev/null; then say symlinks yes; else say symlinks no; fi
  rm -f "$trial"
else
  say writable no
fi
echo end
