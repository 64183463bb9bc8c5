# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# gpu-lib.sh: shared by gpu-check, gpu-bench and gpu-pack. Source it after lib.sh: it defines functions
# and sets nothing until gpu_programs is called.
#
#   gpu_present              true where a GPU answers
#   gpu_programs TARGET...   sets $gpu (folder with bin, tests, lib): that of $KVPOOL_GPU_PREBUILT (a folder,
#                            or the archive that gpu-pack makes), else build/release with the targets
#                            built; sets KVPOOL_BIN
#   gpu_run COMMAND...       runs a program of $gpu with its libraries
#   gpu_system_tests         names of the system tests that take --backend cuda
#   gpu_timed_tests          those of them that measure time: nothing may run beside them
#   gpu_backend_tests        names of the tests of backends
#   gpu_kernel_tests         names of the tests of the kernels: one a tests/gpu/test_X.c

gpu_present() {
    command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q '^GPU '
}

gpu_system_tests() {
    printf 'test_%s\n' crowd road trace soak tenant restart resume reattach hostile input daemon cmd fork \
        device_regions device_deaths
    gpu_timed_tests
}

gpu_timed_tests() {
    printf 'test_%s\n' kill fairness
}

gpu_kernel_tests() {
    local path
    # shellcheck disable=SC2154 # of lib.sh
    for path in "$root"/tests/gpu/test_*.c; do
        [ -f "$path" ] || continue
        path=${path##*/test_}
        printf 'test_gpu_%s\n' "${path%.c}"
    done
}

gpu_backend_tests() {
    printf 'test_kernels_%s\n' attention backend determinism pages
}

# Targets of everything that gpu-check runs.
gpu_check_targets() {
    printf '%s\n' kvpoold kvpool_command kvpool-worker kvpool-example
    gpu_system_tests
    gpu_backend_tests
    gpu_kernel_tests
}

gpu_unpacked=""

gpu_programs() {
    # shellcheck disable=SC2154 # of lib.sh
    local prebuilt=${KVPOOL_GPU_PREBUILT:-}
    if [ -z "$prebuilt" ]; then
        need_packages build
        configure release
        build release "$@"
        gpu=$root/build/release
    elif [ -d "$prebuilt" ]; then
        gpu=$(cd "$prebuilt" && pwd)
    elif [ -f "$prebuilt" ]; then
        gpu_unpacked=$(mktemp -d "${TMPDIR:-/tmp}/kvpool-gpu.XXXXXX")
        # Not every machine with a GPU has xz; every one with PyTorch has this.
        python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' \
            "$prebuilt" "$gpu_unpacked" || die "cannot unpack $prebuilt"
        gpu=$gpu_unpacked
    else
        die "KVPOOL_GPU_PREBUILT names neither a folder nor an archive: $prebuilt"
    fi
    gpu_env=(env)
    if [ -n "$prebuilt" ]; then
        gpu_env+=("LD_LIBRARY_PATH=$gpu/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}")
    fi
    export KVPOOL_BIN=$gpu/bin
}

gpu_forget() {
    [ -z "$gpu_unpacked" ] || rm -rf "$gpu_unpacked"
}

# The libraries that travel are for these programs alone: a Python beside them has its own. In the
# background, use "${gpu_env[@]}" COMMAND: then $! is the program.
gpu_run() {
    "${gpu_env[@]}" "$@"
}
