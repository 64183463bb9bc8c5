// SPDX-License-Identifier: Apache-2.0
// cache.h: which sealed page of a pool goes first when space is needed. Knows pages by number,
// their namespace, class, children and whether they are referenced; nothing of keys, but for a
// 64-bit tag that S3-FIFO's ghosts are remembered by.
//
//     index says            cache_seal(p)            sealed, referenced
//     last reference goes   cache_release(p)         cached: may be evicted once it has no children
//     first reference comes cache_reference(p)       referenced again (a hit)
//     space is needed       cache_evict(ns)          a cached page without children; forgotten
//     dropped               cache_forget(p)          a cached page without children; forgotten
//
// Policies, each for the pages of one namespace and one class (lists: head = newest)
//   LRU     cache_release puts the page at the head, cache_reference takes it out; the tail goes
//           first.
//   S3FIFO  (Yang, Zhang, Qiu, Yue, Rashmi, "FIFO queues are all you need for cache eviction",
//           SOSP 2023), for pages that can be referenced:
//           - a page enters at its first release: at the head of M if its tag is among the ghosts
//             (which forget it), else at the head of S; its `freq` is 0;
//           - cache_reference: freq = min(freq + 1, 3); the page keeps its place in its list;
//           - cache_hit (a page that is referenced already is matched again): the same;
//           - release of a page that is still in a list: nothing moves. One that eviction took out
//             while it was referenced comes to the head of M, its freq unchanged;
//           - eviction looks at the tail of S when the pages in S are more than a tenth of those in S
//             and M together (10 * |S| > |S| + |M|) or M is empty, else at the tail of M, until a
//             page is found:
//               referenced               out of its list
//               has children             out of its list (blocked, see below)
//               S, freq > 0              to the head of M, freq = 0
//               M, freq > 0              to the head of M, freq - 1
//               else                     evicted; from S its tag becomes a ghost
//           - ghosts: the last G tags, G = num_pages of the pool; one memory for all lists.
//             Approximated: a table of buckets of 4, as many as G rounded up to a power of two; the
//             bucket is the tag's low bits, remembered are its upper 32 bits and the time: how many
//             tags were remembered before. A tag that is remembered again is there once, with its
//             new time. A full bucket forgets its oldest; all but the last G times are forgotten.
//
// A page in a list whose namespace or class changes (S3FIFO, while it is referenced) comes to the
// head of the same list, S or M, of its new namespace and class.
//
// Eviction takes from the lowest class that has pages in its lists. A page that it comes to and that
// has children is *blocked*: taken out of its list, and put to the tail of it (S3FIFO: of M) when its
// last child is gone and it is still not referenced. With one namespace a chain's pages are released
// children first, and LRU never meets such a page; namespaces that share pages, and S3FIFO, do.
//
// Invariants
//  1. count(ns) is the number of cached pages of the namespace: sealed, not referenced.
//  2. A page's class only grows between cache_seal and the end; so does its parent's at least as
//     much, if callers release children first.
//  3. A page with children is never evicted.
//  4. No allocation after cache_open; every operation is O(1), eviction amortised: a list is walked
//     past a page at most once for every release, hit or child.
// Thread: the loop thread.
#ifndef KVPOOL_DAEMON_CORE_CACHE_H
#define KVPOOL_DAEMON_CORE_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#define CACHE_NONE UINT32_MAX
#define CACHE_NAMESPACES 64u
#define CACHE_CLASSES 3u
#define CACHE_POLICIES 2u // of core.h's enum core_policy: 0 LRU, 1 S3-FIFO

struct cache; // opaque

// Errors: NULL is out of memory.
struct cache *cache_open(uint32_t policy, uint32_t num_pages);
void cache_close(struct cache *c); // NULL is ignored

// A page becomes sealed; it is referenced. parent: a sealed page, or CACHE_NONE. Class 0.
void cache_seal(struct cache *c, uint32_t page, uint32_t parent, uint32_t ns, uint64_t tag);
// The page's class becomes at least `class_`. For a referenced page.
void cache_raise(struct cache *c, uint32_t page, uint32_t class_);
void cache_release(struct cache *c, uint32_t page);
// A cached page is referenced again, by namespace ns: whose it is from now on.
void cache_reference(struct cache *c, uint32_t page, uint32_t ns);
void cache_hit(struct cache *c, uint32_t page); // of a referenced page
// Hints that one of these follows soon for the page.
void cache_prefetch(const struct cache *c, uint32_t page);

// Evicts up to n cached pages of the namespace; returns how many, and their numbers in the order of
// eviction. Fewer only when all that is left is blocked by children in other namespaces. The parent
// of an evicted page loses a child.
uint32_t cache_evict(struct cache *c, uint32_t ns, uint32_t n, uint32_t *ret_pages);

// False when the page has children. A cached page is forgotten, its parent loses a child.
bool cache_forget(struct cache *c, uint32_t page);

uint32_t cache_count(const struct cache *c, uint32_t ns);
bool cache_is_cached(const struct cache *c, uint32_t page);
bool cache_is_sealed(const struct cache *c, uint32_t page);
uint32_t cache_children(const struct cache *c, uint32_t page);
uint32_t cache_parent(const struct cache *c, uint32_t page); // CACHE_NONE: none
uint32_t cache_ns(const struct cache *c, uint32_t page);
uint32_t cache_class(const struct cache *c, uint32_t page);
// Checks the lists against each other: 0, or the number of a page that is wrong + 1. O(pages).
uint32_t cache_check(const struct cache *c);

#endif
