/* The machine's own lateness: a 10 ms timer as the engine has one, in C, with the same priority.

   timer SECONDS INTERVAL_MS    prints: wake-ups, late by 1 ms or more, by half an interval or more, worst us */

#define _GNU_SOURCE
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    int64_t interval = (int64_t)(atof(argv[2]) * 1e6), end = now_ns() + (int64_t)(atof(argv[1]) * 1e9);
    struct sched_param priority = {.sched_priority = 2};
    int real = sched_setscheduler(0, SCHED_RR, &priority) == 0;
    mlockall(MCL_CURRENT | MCL_FUTURE);
    int timer = timerfd_create(CLOCK_BOOTTIME, 0);
    long wakes = 0, over_1 = 0, over_half = 0;
    int64_t worst = 0;
    for (int64_t at = now_ns() + interval; at < end; at += interval) {
        struct itimerspec when = {.it_value = {.tv_sec = at / 1000000000, .tv_nsec = at % 1000000000}};
        uint64_t expired;
        timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
        if (read(timer, &expired, sizeof expired) != sizeof expired) return 1;
        int64_t late = now_ns() - at;
        wakes++;
        over_1 += late >= 1000000;
        over_half += late >= interval / 2;
        if (late > worst) worst = late;
    }
    printf("%ld %ld %ld %lld %d\n", wakes, over_1, over_half, (long long)(worst / 1000), real);
    return 0;
}
