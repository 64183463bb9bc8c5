// SPDX-License-Identifier: Apache-2.0
// device_memory.h: the emulated device's memory, as the runtime and the driver share it.
// Invariant: all under emu_memory_lock.
#ifndef KVPOOL_TESTS_GPU_EMULATE_DEVICE_MEMORY_H
#define KVPOOL_TESTS_GPU_EMULATE_DEVICE_MEMORY_H

#include <stddef.h>
#include <sys/types.h>

#include <map>
#include <mutex>

struct emu_allocation {
    size_t bytes;
    unsigned char *map; // what to unmap, guards included; NULL: from malloc
    size_t map_bytes;
    int fd; // of memory that other processes can open; -1: it cannot be
    bool host;
    bool counted; // against the device's size
    size_t at;    // of an allocation: in its file; of an opened file: what the handle named
};
extern std::mutex emu_memory_lock;
extern std::map<unsigned char *, emu_allocation> emu_memory; // by address
extern size_t emu_memory_used;

size_t emu_memory_limit();         // of the device, bytes: KVPOOL_EMULATE_MEMORY
int emu_device_count();            // KVPOOL_EMULATE_DEVICES
int emu_memory_file(size_t bytes); // a new one, or -1
bool emu_memory_is_file(int fd, size_t *ret_bytes);
bool emu_programs_last();    // what was launched counts as running: see device_memory.cpp
void emu_memory_wait_idle(); // before memory is taken back, without the lock: see device_memory.cpp
void emu_memory_wait_others();             // before a launch: while other threads are in the former
bool emu_memory_registered(const void *p); // host memory that the device reaches
// The allocation that holds p, or NULL.
const std::pair<unsigned char *const, emu_allocation> *emu_memory_find(const void *p);

#endif
