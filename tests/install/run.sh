#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs a build tree into a private folder and builds a small program against it, by the CMake
# package and by pkg-config, also after the tree was moved. Checks what the library exports.
#   run.sh BUILD_DIR SOURCE_DIR LIBDIR VERSION CC C_FLAGS [COMPONENT]
set -eu
build=$1 source=$2 libdir=$3 version=$4 cc=$5 flags=$6 component=${7:-}

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
fail() {
    echo "install test: $*" >&2
    exit 1
}

# Builds and runs the consumer against the tree in $1, both ways.
check_tree() {
    tree=$1
    work=$(mktemp -d -p "$tmp")
    if ! { cmake -S "$source/tests/install/consumer" -B "$work/cmake" -DCMAKE_C_COMPILER="$cc" \
        -DCMAKE_C_FLAGS="$flags" -DCMAKE_PREFIX_PATH="$tree" && cmake --build "$work/cmake"; } \
        >"$work/log" 2>&1; then
        cat "$work/log" >&2
        fail "the consumer does not build by the CMake package"
    fi
    check_output "$("$work/cmake/consumer")"

    pc="$tree/$libdir/pkgconfig"
    found=$(PKG_CONFIG_LIBDIR=$pc pkg-config --variable=prefix kvpool)
    [ "$(realpath "$found")" = "$(realpath "$tree")" ] || fail "kvpool.pc has prefix $found"
    [ "$(PKG_CONFIG_LIBDIR=$pc pkg-config --modversion kvpool)" = "$version" ] ||
        fail "kvpool.pc has another version"
    # The headers are for C99 and C++11 and later, each alone.
    for header in "$tree"/include/kvpool/*.h; do
        printf '#include <kvpool/%s>\n' "$(basename "$header")" >"$work/alone.c"
        for language in "c -std=c99" "c++ -std=c++11"; do
            # shellcheck disable=SC2086  # flags are words
            $cc -x $language -pedantic -Wall -Wextra -Werror $flags -fsyntax-only -I"$tree/include" \
                "$work/alone.c" || fail "$header does not stand alone ($language)"
        done
    done
    # shellcheck disable=SC2046,SC2086  # flags are words
    $cc -std=c99 -pedantic -Wall -Wextra -Werror $flags "$source/tests/install/consumer/consumer.c" \
        $(PKG_CONFIG_LIBDIR=$pc pkg-config --cflags --libs kvpool) -o "$work/consumer"
    check_output "$(LD_LIBRARY_PATH=$tree/$libdir "$work/consumer")"
}

check_output() {
    expected="$version KVPOOL_E_CONN: no daemon: directory /nonexistent/kvpool does not exist"
    [ "$1" = "$expected" ] || fail "the consumer printed \"$1\""
    echo "$1"
}

# DESTDIR keeps absolute destinations in the private folder too.
DESTDIR=$tmp/one cmake --install "$build" --prefix /opt/kvpool ${component:+--component $component} \
    >"$tmp/log" 2>&1 || {
    cat "$tmp/log" >&2
    fail "cmake --install"
}
tree=$tmp/one/opt/kvpool
check_tree "$tree"

# Another minor version is another library.
if cmake -S "$source/tests/install/consumer" -B "$tmp/other" -DCMAKE_C_COMPILER="$cc" \
    -DCMAKE_PREFIX_PATH="$tree" -DWANTED=0.99 >/dev/null 2>&1; then
    fail "a consumer that wants version 0.99 was satisfied"
fi

# Exported is what the headers declare, no less and no more.
awk '/^KVPOOL_API/ { take = 1 } take { text = text $0 } /;/ { take = 0 } END { print text }' \
    "$tree"/include/kvpool/*.h | grep -o 'kvpool_[a-z_]*(' | tr -d '(' | sort >"$tmp/declared"
nm -D --defined-only "$tree/$libdir/libkvpool.so" | awk '$2 == "T" { print $3 }' |
    sed 's/@.*//' | sort >"$tmp/exported"
diff "$tmp/declared" "$tmp/exported" || fail "headers and library differ (< declared, > exported)"

# The tree works wherever it lies.
mkdir "$tmp/two"
mv "$tree" "$tmp/two/moved"
check_tree "$tmp/two/moved"
echo "install test: ok, $(wc -l <"$tmp/exported") functions"
