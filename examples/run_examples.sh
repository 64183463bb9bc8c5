#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# run_examples.sh BIN TEXT: the example programs against a daemon of their own: README's client, and
# a worker of every role over a prompt that fills its pages exactly and one that does not.
# KVPOOL_TEST_BACKEND: the daemon's backend (default cpu).
set -eu
bin=$1
text=$2
work=$(mktemp -d /tmp/kvpool-examples.XXXXXX)
daemon=""
trap '[ -z "$daemon" ] || kill -KILL "$daemon" 2>/dev/null || true; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP

"$bin/kvpoold" --backend "${KVPOOL_TEST_BACKEND:-cpu}" --dir "$work/run" </dev/null 2>"$work/log" &
daemon=$!
tries=100
until "$bin/kvpool" --dir "$work/run" ping >/dev/null 2>&1; do
    tries=$((tries - 1))
    if [ $tries -eq 0 ] || ! kill -0 "$daemon" 2>/dev/null; then
        cat "$work/log"
        exit 1
    fi
    sleep 0.1
done

KVPOOL_DIR=$work/run
export KVPOOL_DIR
test "$("$bin/kvpool-example")" = "out[7] = 23"
for role in plain fork truncate; do
    for bytes in 96 103; do
        "$bin/kvpool-worker" --role $role --text "$text" --prompt-bytes $bytes --tokens 33
    done
done

# What must fail, and with which status.
status=0
"$bin/kvpool-worker" --text "$work/missing" || status=$?
test $status -eq 1
status=0
"$bin/kvpool-worker" --text "$text" --pool hello || status=$? # README's pool has another geometry
test $status -eq 1
status=0
"$bin/kvpool-worker" --role none || status=$?
test $status -eq 2
status=0
KVPOOL_DIR=$work/nobody "$bin/kvpool-example" || status=$?
test $status -eq 1

# The workers left nothing behind.
"$bin/kvpool" --dir "$work/run" status --json >"$work/status"
for zero in '"sequences":0' '"steps":0' '"regions":0' '"sessions_died":0'; do
    grep -q "${zero}[,}]" "$work/status" || { echo "not $zero:"; cat "$work/status"; exit 1; }
done
kill -TERM "$daemon"
wait "$daemon"
daemon=""
