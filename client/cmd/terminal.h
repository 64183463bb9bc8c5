// SPDX-License-Identifier: Apache-2.0
// terminal.h: the screen and the keys of `kvpool top`, without a library.
//
// Invariants
//  1. What terminal_open changed is put back by terminal_close, also when a signal asks to end.
//  2. Without a terminal on stdout nothing is changed: frames follow one another.
// Thread: main; one terminal a process.
#ifndef KVPOOL_CMD_TERMINAL_H
#define KVPOOL_CMD_TERMINAL_H

#include <stdbool.h>
#include <stdint.h>

void terminal_open(bool screen); // false: take no screen, even on a terminal (JSON output)
void terminal_close(void);
bool terminal_is_screen(void); // stdout is a terminal
int terminal_rows(void);       // its lines, 0 when it is none

// Begins a frame: clears the screen, or separates it from the last one by an empty line.
void terminal_frame(void);

// Waits for the next frame. Returns false when the user asked to end (q, Ctrl-C, SIGTERM, SIGHUP).
bool terminal_wait(uint32_t ms);

#endif
