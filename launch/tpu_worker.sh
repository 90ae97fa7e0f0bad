#!/usr/bin/env bash
# What tpu_pod.py asks of each machine of a pod. DIR holds the code, the run's log and its exit code; whoever holds the lock
# DIR/lock is the run, so that a lost connection neither ends it nor starts it twice.
#
#   tpu_worker.sh setup DIR ARCHIVE COMMAND   unpack the code and prepare it with COMMAND, in DIR/code
#   tpu_worker.sh mount DIR BUCKET            mount a bucket at DIR/data, read-only
#   tpu_worker.sh start DIR PROGRAM ...       start the run in DIR/code, detached, unless it is running
#   tpu_worker.sh follow DIR LINES            show its log from LINES lines before the end, until it ends
#   tpu_worker.sh status DIR                  one line: jaxcl-worker HOST running | exited CODE | killed | absent
#   tpu_worker.sh log DIR LINES               the end of its log
#   tpu_worker.sh stop DIR                    ask it to save and stop; after 30 s end it
set -euo pipefail

verb=$1
mkdir -p "$2"
dir=$(cd "$2" && pwd)
shift 2

running() { ! flock --nonblock "$dir/lock" true; }

status() {
  if running; then
    echo running
  elif [[ -s $dir/exit ]]; then
    echo "exited $(<"$dir/exit")"
  elif [[ -e $dir/pid ]]; then
    echo killed
  else
    echo absent
  fi
}

case $verb in
  setup)
    if running; then
      echo "the run is running here: nothing to set up"
      exit
    fi
    rm -rf "$dir/code"
    mkdir "$dir/code"
    tar -xzf "$1" -C "$dir/code"
    cd "$dir/code"
    bash -euo pipefail -c "$2" </dev/null
    ;;
  mount)
    mkdir -p "$dir/data"
    if mountpoint -q "$dir/data"; then
      exit
    fi
    if ! command -v gcsfuse >/dev/null; then
      key=/usr/share/keyrings/cloud.google.asc
      curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
      echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
      sudo apt-get -qq update
      sudo apt-get -qq install --yes gcsfuse
    fi
    gcsfuse --implicit-dirs -o ro "$1" "$dir/data"
    ;;
  start)
    if running; then
      exit
    fi
    rm -f "$dir/exit" "$dir/pid"
    # The inner shell outlives a TERM to its group, in order to note the exit code.
    # shellcheck disable=SC2016
    setsid bash -c '
      dir=$1
      shift
      trap : TERM
      exec 9>"$dir/lock"
      flock --timeout 5 9 || exit 1
      echo "$$" >"$dir/pid"
      cd "$dir/code"
      code=0
      "$@" 9>&- || code=$?
      echo "$code" >"$dir/exit"
    ' run "$dir" "$@" >>"$dir/log" 2>&1 </dev/null &
    for _ in {1..100}; do
      [[ ! -s $dir/pid ]] || exit 0
      sleep 0.1
    done
    echo "the run did not start within 10 s" >&2
    exit 1
    ;;
  follow)
    touch "$dir/log"
    tail -n "$1" -F "$dir/log" 2>/dev/null &
    tail=$!
    flock "$dir/lock" true
    sleep 1
    kill "$tail"
    ;;
  status)
    echo "jaxcl-worker $(hostname) $(status)"
    ;;
  log)
    echo "--- $(hostname), $(status):"
    [[ ! -e $dir/log ]] || tail -n "$1" "$dir/log"
    ;;
  stop)
    if running; then
      kill -TERM -- "-$(<"$dir/pid")"
      flock --timeout 30 "$dir/lock" true || kill -KILL -- "-$(<"$dir/pid")"
    fi
    ;;
  *)
    echo "tpu_worker.sh: unknown verb '$verb'" >&2
    exit 2
    ;;
esac
