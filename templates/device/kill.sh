# sh -c THIS edgepack PID: kill a program that was started by remote.RUN, with everything in its process group.
# Where a server starts programs in its own group (dropbear; then it is ours too), the process and its descendants.
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
  tree=" $pid " more=yes
  while [ "$more" ]; do
    more=
    for stat in /proc/[0-9]*/stat; do
      child=${stat#/proc/} child=${child%/stat}
      case $tree in *" $child "*) continue ;; esac
      group "$child" && case $tree in *" $parent "*) tree="$tree$child " more=yes ;; esac
    done
  done
  kill -KILL $tree 2>/dev/null || :  # some may have ended by themselves
fi
