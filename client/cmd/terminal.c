// SPDX-License-Identifier: Apache-2.0
// terminal.c: see terminal.h.
#include "client/cmd/terminal.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static struct {
    bool screen;           // stdout is a terminal
    bool keys;             // stdin is a terminal, in raw mode
    bool framed;           // a frame was shown
    struct termios before; // of stdin
} term;

static volatile sig_atomic_t asked_to_end;

static void on_signal(int number) {
    (void)number;
    asked_to_end = 1;
}

void terminal_open(bool screen) {
    const struct sigaction action = {.sa_handler = on_signal}; // no SA_RESTART: poll returns
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGHUP, &action, NULL);
    term.screen = screen && isatty(STDOUT_FILENO) == 1;
    term.framed = false;
    if (!term.screen) {
        return;
    }
    // A process in the background must leave the terminal's settings alone.
    if (tcgetpgrp(STDIN_FILENO) == getpgrp() && tcgetattr(STDIN_FILENO, &term.before) == 0) {
        struct termios raw = term.before;
        raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
        raw.c_cc[VMIN] = 0;
        raw.c_cc[VTIME] = 0;
        term.keys = tcsetattr(STDIN_FILENO, TCSANOW, &raw) == 0;
    }
    fputs("\033[?1049h\033[?25l\033[?7l", stdout); // other screen, no cursor, no wrapping
    fflush(stdout);
}

void terminal_close(void) {
    if (term.screen) {
        fputs("\033[?7h\033[?25h\033[?1049l", stdout);
        fflush(stdout);
    }
    if (term.keys) {
        tcsetattr(STDIN_FILENO, TCSANOW, &term.before);
    }
    term.screen = false;
    term.keys = false;
}

bool terminal_is_screen(void) {
    return term.screen;
}

int terminal_rows(void) {
    struct winsize size;
    if (!term.screen || ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0) {
        return 0;
    }
    return size.ws_row;
}

void terminal_frame(void) {
    if (term.screen) {
        fputs("\033[H\033[2J", stdout);
    } else if (term.framed) {
        putchar('\n');
    }
    term.framed = true;
}

static uint64_t now_ms(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000u + (uint64_t)ts.tv_nsec / 1000000u;
}

bool terminal_wait(uint32_t ms) {
    uint64_t end = now_ms() + ms;
    for (uint64_t now = now_ms(); now < end && !asked_to_end; now = now_ms()) {
        struct pollfd in = {.fd = term.keys ? STDIN_FILENO : -1, .events = POLLIN};
        unsigned char key = 0;
        if (poll(&in, 1, (int)(end - now)) <= 0) {
            continue; // the time is over, or a signal came
        }
        ssize_t got = read(STDIN_FILENO, &key, 1);
        if (got <= 0) {
            asked_to_end = 1; // the terminal is gone
        } else if (key == 'q' || key == 'Q') {
            return false;
        } else if (key == ' ' || key == '\n') {
            return true; // the next frame now
        }
    }
    return !asked_to_end;
}
