// SPDX-License-Identifier: Apache-2.0
// convert.h: wire structs to public ones. The target's `size` was checked and stays as it is.
// Threads: any, no state.
#ifndef KVPOOL_CLIENT_LIB_CONVERT_H
#define KVPOOL_CLIENT_LIB_CONVERT_H

#include "proto/proto.h"

void convert_pool_info(const struct proto_pool_info *in, kvpool_pool_info *ret);
void convert_seq_info(const struct proto_seq_info *in, kvpool_seq_info *ret);
void convert_client_info(const struct proto_client_info *in, kvpool_client_info *ret);
void convert_usage(const struct proto_ns_info *in, kvpool_usage *ret);
void convert_stats(const struct proto_stats *in, uint64_t epoch, kvpool_stats *ret);

#endif
