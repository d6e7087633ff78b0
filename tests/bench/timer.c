/* The machine's own lateness: a timer as the engine has one, in C.

   timer SECONDS INTERVAL_MS                 with the engine's priority, on any core
   timer SECONDS INTERVAL_MS CORE            on that core and above everything of ours, so that what it waits for is the machine

   Prints each wake-up that was late by TOLD_US or more: its time (CLOCK_BOOTTIME ns) and its lateness (us). At the end: "end",
   wake-ups, late by 1 ms or more, by half an interval or more, worst us, and whether it had its priority. */

#define _GNU_SOURCE
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define TOLD_US 5000
#define OURS 2
#define ABOVE 90

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    int64_t interval = (int64_t)(atof(argv[2]) * 1e6), end = now_ns() + (int64_t)(atof(argv[1]) * 1e9);
    if (argc > 3) {
        cpu_set_t core;
        CPU_ZERO(&core);
        CPU_SET(atoi(argv[3]), &core);
        if (sched_setaffinity(0, sizeof core, &core)) return 1;
    }
    struct sched_param priority = {.sched_priority = argc > 3 ? ABOVE : OURS};
    int real = sched_setscheduler(0, SCHED_RR, &priority) == 0;
    mlockall(MCL_CURRENT | MCL_FUTURE);
    int timer = timerfd_create(CLOCK_BOOTTIME, 0);
    long wakes = 0, over_1 = 0, over_half = 0;
    int64_t worst = 0, late = 0;
    for (int64_t at = now_ns() + interval; at < end; at += interval) {
        if (late > interval) at = now_ns() + interval; /* what was missed in one stall is one lateness, not many */
        struct itimerspec when = {.it_value = {.tv_sec = at / 1000000000, .tv_nsec = at % 1000000000}};
        uint64_t expired;
        timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
        if (read(timer, &expired, sizeof expired) != sizeof expired) return 1;
        int64_t woke = now_ns();
        late = woke - at;
        wakes++;
        over_1 += late >= 1000000;
        over_half += late >= interval / 2;
        if (late > worst) worst = late;
        if (late / 1000 >= TOLD_US) printf("%lld %lld\n", (long long)woke, (long long)(late / 1000));
    }
    printf("end %ld %ld %ld %lld %d\n", wakes, over_1, over_half, (long long)(worst / 1000), real);
    return 0;
}
