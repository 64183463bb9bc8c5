// SPDX-License-Identifier: Apache-2.0
// convert.c: see convert.h.
#include "client/lib/convert.h"

#include "client/lib/args.h"

#include <stdio.h>

void convert_pool_info(const struct proto_pool_info *in, kvpool_pool_info *ret) {
    kvpool_pool_info out = {.pool = in->pool,
                            .layers = in->layers,
                            .kv_heads = in->kv_heads,
                            .head_dim = in->head_dim,
                            .page_size = in->page_size,
                            .dtype = in->dtype,
                            .num_pages = in->num_pages,
                            .max_seqs = in->max_seqs,
                            .max_seq_len = in->max_seq_len,
                            .free_pages = in->free_pages,
                            .shared_pages = in->shared_pages,
                            .seqs = in->seqs,
                            .bytes = in->bytes,
                            .kv_dtype = in->kv_dtype,
                            .export_as = in->export};
    snprintf(out.name, sizeof out.name, "%s", in->name);
    args_write(ret, &out, sizeof out);
}

void convert_seq_info(const struct proto_seq_info *in, kvpool_seq_info *ret) {
    kvpool_seq_info out = {.seq = in->seq,
                           .pool = in->pool,
                           .length = in->length,
                           .pages = in->pages,
                           .shared_pages = in->shared_pages,
                           .in_step = in->in_step,
                           .owner_pid = in->owner_pid};
    args_write(ret, &out, sizeof out);
}

void convert_client_info(const struct proto_client_info *in, kvpool_client_info *ret) {
    kvpool_client_info out = {.pid = in->pid,
                              .uid = in->uid,
                              .seqs = in->seqs,
                              .steps = in->steps,
                              .regions = in->regions,
                              .inflight = in->inflight,
                              .region_bytes = in->region_bytes,
                              .requests = in->requests};
    snprintf(out.name, sizeof out.name, "%s", in->name);
    args_write(ret, &out, sizeof out);
}

void convert_usage(const struct proto_ns_info *in, kvpool_usage *ret) {
    kvpool_usage out = {.num_pages = in->num_pages,
                        .free_pages = in->free_pages,
                        .reserve = in->reserve,
                        .limit = in->limit,
                        .weight = in->weight,
                        .active = in->active,
                        .cached = in->cached,
                        .seqs = in->seqs,
                        .hit_tokens = in->hit_tokens,
                        .miss_tokens = in->miss_tokens,
                        .sealed = in->sealed,
                        .deduplicated = in->deduplicated,
                        .evicted = in->evicted,
                        .dropped = in->dropped,
                        .refused = in->refused};
    snprintf(out.name, sizeof out.name, "%s", in->name);
    snprintf(out.group, sizeof out.group, "%s", in->group);
    args_write(ret, &out, sizeof out);
}

void convert_stats(const struct proto_stats *in, uint64_t epoch, kvpool_stats *ret) {
    kvpool_stats out = {.uptime_ns = in->uptime_ns,
                        .epoch = epoch,
                        .pid = in->pid,
                        .pools = in->pools,
                        .seqs = in->seqs,
                        .steps = in->steps,
                        .clients = in->clients,
                        .regions = in->regions,
                        .queue_depth = in->queue_depth,
                        .requests = in->requests,
                        .errors = in->errors,
                        .appends = in->appends,
                        .prefills = in->prefills,
                        .decodes = in->decodes,
                        .commits = in->commits,
                        .aborts = in->aborts,
                        .tokens = in->tokens,
                        .sessions_died = in->sessions_died,
                        .relistens = in->relistens,
                        .leaked_pipes = in->leaked_pipes,
                        .requests_per_s = in->requests_per_s,
                        .reclaim_last_ns = in->reclaim_last_ns,
                        .reclaim_max_ns = in->reclaim_max_ns};
    args_write(ret, &out, sizeof out);
}
