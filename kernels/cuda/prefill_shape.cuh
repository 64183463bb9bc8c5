// SPDX-License-Identifier: Apache-2.0
// prefill_shape.cuh: the shape of one prefill kernel: its tile, its threads and its shared memory.
//
// T is the type of q and out, KV that of the planes (T or e4m3); MMA is what the tensor cores multiply.
// A CTA works on WARPS * MT * 16 packed query rows; a warp has MT * 16 of them, whole.
//
//   shared memory, rows of 2 * D bytes:   | Q: ROWS | K, V: TOKENS each, of stage 0 | of stage 1 |
//   e4m3:                                 | Q: ROWS | K, V: TOKENS each | as loaded: K, V |
//   then the item's record and a word between threads. Chunk c (16 bytes) of row r lies at chunk c ^ (r & 7).
#ifndef KVPOOL_KERNELS_CUDA_PREFILL_SHAPE_CUH
#define KVPOOL_KERNELS_CUDA_PREFILL_SHAPE_CUH

#include "kernels/cuda/prefill_work.cuh"

template <class T, class KV> struct prefill_types {
    using mma = T;
    static constexpr bool BYTES = false;
};
template <class T> struct prefill_types<T, e4m3> {
    using mma = fp16;
    static constexpr bool BYTES = true;
};

template <class A, class B> struct prefill_same {
    static constexpr bool value = false;
};
template <class A> struct prefill_same<A, A> {
    static constexpr bool value = true;
};

template <class T_, class KV_, int D_, int WARPS_, int MT_, int TOKENS_, int CTAS_>
struct prefill_shape {
    using T = T_;
    using MMA = typename prefill_types<T_, KV_>::mma;
    static constexpr bool BYTES = prefill_types<T_, KV_>::BYTES;
    static constexpr bool Q_AS_IS = prefill_same<T, MMA>::value;
    static constexpr int D = D_, WARPS = WARPS_, MT = MT_, TOKENS = TOKENS_, CTAS = CTAS_;
    static constexpr int THREADS = WARPS * 32, ROWS = WARPS * MT * 16;
    static constexpr int PITCH = D * 2; // bytes of a row of Q, K, V
    static constexpr int TILE = TOKENS * PITCH;

    // Loading: a thread has one 16-byte chunk of every STEP-th row of K and of V.
    static constexpr int CHUNKS = D * (BYTES ? 1 : 2) / 16;
    static constexpr int STEP = THREADS / CHUNKS;
    static constexpr int LOADS = TOKENS / STEP;
    static constexpr int ID_WORDS = (TOKENS + 31) / 32; // page ids of a tile's tokens, one a lane

    static constexpr int STAGES = BYTES ? 1 : 2;
    static constexpr int KV_AT = ROWS * PITCH;
    static constexpr int BYTES_AT = KV_AT + STAGES * 2 * TILE;
    static constexpr int WORD_AT = BYTES_AT + (BYTES ? 2 * TOKENS * D : 0);
    static constexpr int RECORD_AT = WORD_AT + 16;
    static constexpr int SMEM = RECORD_AT + (int)sizeof(prefill_record);

    static_assert(STEP <= 32 && 32 % STEP == 0 && TOKENS % 32 == 0,
                  "a load's page id is in a register known when compiling");
};

// Enqueues the attention kernel of shape S.
template <class S>
int prefill_start(const struct prefill_args *a, uint32_t ctas, bool after_previous, void *stream);

// The shapes of the launcher: one file makes the instances of each (prefill_inst_*.cu).
template <class T, class KV> struct prefill_shapes {
    using d64 = prefill_shape<T, KV, 64, 4, 2, 64, 3>;
    using d128 = prefill_shape<T, KV, 128, 4, 2, 64, 2>;
    using d256 = prefill_shape<T, KV, 256, 8, 1, 64, 1>;       // 193 KB of shared memory
    using d256_small = prefill_shape<T, KV, 256, 4, 1, 32, 2>; // 97 KB: parts that have no more
};
#define PREFILL_INSTANCE(...)                                                                      \
    template int prefill_start<__VA_ARGS__>(const struct prefill_args *, uint32_t, bool, void *)

#endif
