#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# check_machine_code.sh: looks at the machine code (sm_90a) of kernels that may start before the kernel ahead of
# them on the stream has ended. None may read global memory before it has waited for that one, nor read through the
# read-only path at all: the compiler may move such a read ahead of the wait. And in the decode kernels no branch
# may be one that parts a warp in the compiler's eyes (warp_uniform in decode_tiles.cuh).
#
#   check_machine_code.sh CUOBJDUMP LIBRARY      77: the library has no such kernels
set -eu
code=$("$1" -sass -arch sm_90a "$2")
printf '%s\n' "$code" | awk '
    /Function :/ { name = $3; reads = 0; waited = 0; decode = name ~ /decode_kernel/; decodes += decode }
    / LDG/ && !waited { reads++ }
    /ACQBULK/ { waited = 1; kernels++; chained[name] = 1; early[name] = reads }
    / LDG.*CONSTANT/ { constant[name]++ }
    / BRA\.DIV/ && decode { parted[name]++ }
    END {
        for (name in chained) {
            if (early[name]) { print name ": reads before it waits: " early[name]; bad++ }
            if (constant[name]) { print name ": reads through the read-only path: " constant[name]; bad++ }
        }
        for (name in parted) { print name ": parts the warp at shuffles and votes: " parted[name]; bad++ }
        print kernels + 0 " kernels wait for the one before, " decodes + 0 " decode, " bad + 0 " faults"
        exit bad ? 1 : kernels && decodes ? 0 : 77
    }'
