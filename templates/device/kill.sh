# sh -c THIS edgepack PID: kill a program that was started by run.sh's line, with everything in its process group.
# Where a server starts programs in its own group (then it is ours too), only the process and its children are killed.
pid=$1
group() {  # the process group of a process: the fifth field of stat, where the second, (name), may hold anything
  read -r line 2>/dev/null <"/proc/$1/stat" || return 1
  set -- ${line##*) }
  parent=$2 group=$3
}
group $$ && own=$group
group "$pid" || exit 0
if [ "$group" != "$own" ]; then
  kill -KILL "-$group"  # without --, which dash refuses here
else
  for stat in /proc/[0-9]*/stat; do
    child=${stat#/proc/} child=${child%/stat}
    group "$child" && [ "$parent" = "$pid" ] && kill -KILL "$child"
  done
  kill -KILL "$pid"
fi
