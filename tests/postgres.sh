#!/usr/bin/env bash
# postgres.sh start|stop|crash FOLDER [KIB] - a PostgreSQL server of the tests' own, in a new folder, reached by a
# unix socket in it only. `start` makes it if there is none and prints its address; `crash` is a power
# cut for the server. KIB: its files may not grow larger. Exit status 77: there are no server programs here.
set -u
verb=$1 folder=$2

bin=$(command -v initdb 2>/dev/null) && bin=$(dirname "$bin")
[ -n "$bin" ] || bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1)
[ -n "$bin" ] && [ -x "$bin/initdb" ] && [ -x "$bin/pg_ctl" ] || {
    echo "no PostgreSQL server programs (postgresql)" >&2
    exit 77
}

as=()
if [ "$(id -u)" -eq 0 ]; then # the server refuses to run as root, so another user does
    user=postgres
    id -u $user >/dev/null 2>&1 || user=nobody
    as=(setpriv --reuid="$(id -u $user)" --regid="$(id -g $user)" --clear-groups --)
fi
mkdir -p "$folder" && chmod 700 "$folder" && { [ ${#as[@]} -eq 0 ] || chown $user "$folder"; } || exit 1
control() { (cd "$folder" && ${as[@]+"${as[@]}"} "$bin/pg_ctl" -D "$folder/data" -s -w -t 120 "$@"); }

case $verb in
start)
    if [ ! -d "$folder/data" ]; then
        (cd "$folder" && ${as[@]+"${as[@]}"} "$bin/initdb" -D "$folder/data" -U icae -A trust -N \
            --locale=C.UTF-8 -E UTF8 --wal-segsize=1 >"$folder/initdb.log" 2>&1) || {
            cat "$folder/initdb.log" >&2
            exit 1
        }
        # What is tested is the death of processes, not of the machine: no fsync. Little of everything.
        cat >>"$folder/data/postgresql.conf" <<END
listen_addresses = ''
unix_socket_directories = '$folder'
fsync = off
shared_buffers = 8MB
max_connections = 40
dynamic_shared_memory_type = mmap
log_min_messages = panic
END
    fi
    [ -z "${3:-}" ] || ulimit -f "$3"
    control -l "$folder/log" start >/dev/null </dev/null || {
        cat "$folder/initdb.log" >&2
        exit 1
    }
    echo "postgresql://icae@/postgres?host=$folder"
    ;;
stop) control -m fast stop ;;
crash) control -m immediate stop ;;
*) exit 2 ;;
esac
