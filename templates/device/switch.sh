# Parts of activate and rollback.
point() { # point LINK DIGEST: a rename replaces models/NAME/LINK in one step
  rm -rf stage
  mkdir stage
  ln -s "../../bundles/$2" "stage/$1"
  mv -f "stage/$1" "models/$name/" # into the folder: a plain `mv A B` would follow B
  rm -rf stage
  flush
}

used() { # is a process running in or from bundles/$1?
  ls -ld /proc/[0-9]*/exe /proc/[0-9]*/cwd 2>/dev/null | grep -qF -- "$here/bundles/$1" ||
    grep -qsF -- "$here/bundles/$1" /proc/[0-9]*/maps
}

collect() { # remove what no model points to and nobody uses
  here=$(pwd -P)
  rm -rf stage runs
  for path in .edgepack-probe-*; do # of a probe that was killed
    [ -d "/proc/${path##*-}" ] || rm -f "$path"
  done
  kept=" "
  for link in models/*/current models/*/previous; do kept="$kept$(target "$link") "; done
  for path in bundles/*; do
    [ -e "$path" ] || continue
    file=${path##*/}
    sum=${file%%.*}
    if [ "$file" = "$sum" ] || [ "$file" = "$sum.sums" ]; then
      case $kept in *" $sum "*) continue ;; esac
      if used "$sum"; then continue; fi
    fi
    if [ "$file" = "$sum" ]; then
      mv "$path" "$path.gone" # whoever starts now fails at once, and does not run in half a bundle
      if used "$sum"; then
        mv "$path.gone" "$path"
        continue
      fi
      rm -rf "bundles/$sum.sums"
      path=$path.gone
    fi
    rm -rf "$path"
  done
  mkdir stage
  { echo none; cat bundles/*.sums 2>/dev/null; } | cut -c1-64 | sort -u >stage/keep
  ls -A objects | grep -vxFf stage/keep | while read -r file; do rm -f "objects/$file"; done
  rm -rf stage
  rmdir models/* 2>/dev/null || :
}
