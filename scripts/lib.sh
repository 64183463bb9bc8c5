# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# lib.sh: shared by the scripts of this folder. Source it (bash): it sets $root, defines functions,
# does nothing else.
#
#   root                       absolute path of the source tree
#   say WORDS                  one line of progress on stdout
#   die WORDS                  one line on stderr, exit 1
#   need_packages GROUP...     installs what is missing of the groups below; no package manager is
#                              called, and no network needed, when nothing is
#   configure PRESET           cmake --preset PRESET, quiet unless it fails; for the GPUs that
#                              $KVPOOL_CUDA_ARCHITECTURES lists ("90a-real"), where it is set
#   build PRESET TARGET...     builds what is stale of the targets

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Debian 12 packages. build: to configure any preset and build it with gcc (the presets include the
# tests, so cmocka belongs here); test: what the fuzz preset and the linters need on top.
# shellcheck disable=SC2034 # read by name in need_packages
packages_build="cmake ninja-build gcc libc6-dev pkg-config libnng-dev libuv1-dev libinih-dev
    libsystemd-dev libssl-dev uthash-dev libcmocka-dev"
# shellcheck disable=SC2034
packages_test="clang clang-format clang-tidy libclang-rt-14-dev"

say() {
    printf '== %s\n' "$*"
}

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# Names of the given packages that are not installed.
missing_packages() {
    local package
    for package in "$@"; do
        # shellcheck disable=SC2016 # dpkg-query's own format
        case $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null) in
        *" installed") ;;
        *) printf '%s ' "$package" ;;
        esac
    done
}

need_packages() {
    local group wanted="" missing as_root=""
    for group in "$@"; do
        local list="packages_$group"
        wanted+=" ${!list}"
    done
    command -v dpkg-query >/dev/null ||
        die "this script installs Debian packages, and this is not Debian. Install: $wanted"
    # shellcheck disable=SC2086 # lists of words
    missing=$(missing_packages $wanted)
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null ||
            die "not root and no sudo. As root, run: apt-get install $missing"
        as_root="sudo"
    fi
    say "installing $missing"
    # shellcheck disable=SC2086 # lists of words
    $as_root env DEBIAN_FRONTEND=noninteractive sh -c \
        'apt-get install -y -q --no-install-recommends "$@" ||
            { apt-get update -q && apt-get install -y -q --no-install-recommends "$@"; }' \
        sh $missing </dev/null || die "cannot install: $missing"
}

configure() {
    local log gpus=(-U KVPOOL_CUDA_ARCHITECTURES) # all of them
    if [ -n "${KVPOOL_CUDA_ARCHITECTURES:-}" ]; then
        gpus=("-DKVPOOL_CUDA_ARCHITECTURES=$KVPOOL_CUDA_ARCHITECTURES")
    fi
    log=$(cmake -S "$root" --preset "$1" "${gpus[@]}" 2>&1) || {
        printf '%s\n' "$log" >&2
        die "cmake --preset $1 failed"
    }
}

build() {
    local preset=$1
    shift
    cmake --build "$root/build/$preset" --target "$@" || die "the build of $preset failed"
}
