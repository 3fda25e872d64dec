/* A clock on the wall that a test may set: what tells CLOCK_REALTIME adds the seconds that the file FAKE_CLOCK holds (a
 * long, mapped, so that it may change at any time), and what waits until then takes them off again, as where the machine's
 * own clock is set. Monotonic clocks are left alone. Loaded by LD_PRELOAD; see machines.py.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const long none = 0;
static const volatile long *offset = &none;

__attribute__((constructor)) static void open_clock(void) {
    const char *path = getenv("FAKE_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *mapped = mmap(NULL, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
    if (mapped != MAP_FAILED)
        offset = mapped;
    close(file);
}

static int wall(clockid_t id) { return id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE; }

/* A moment on the real clock. One before 2001 is of a monotonic clock: some conditions are made to wait by that. */
static const struct timespec *real(const struct timespec *moment, struct timespec *store) {
    if (!moment || moment->tv_sec < 1000000000)
        return moment;
    *store = *moment;
    store->tv_sec -= *offset;
    if (store->tv_sec < 0)
        store->tv_sec = 0;
    return store;
}

/* The function of this name that would be called without us. Conditions have an older version, which is another thing. */
static void *next(const char *name) {
    void *found = dlvsym(RTLD_NEXT, name, "GLIBC_2.3.2");
    return found ? found : dlsym(RTLD_NEXT, name);
}
#define NEXT(name)                         \
    static __typeof__(&name) original;     \
    if (!original)                         \
        original = (__typeof__(&name))next(#name); \
    struct timespec store;                 \
    (void)store

int clock_gettime(clockid_t id, struct timespec *now) {
    NEXT(clock_gettime);
    int result = original(id, now);
    if (!result && wall(id))
        now->tv_sec += *offset;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    NEXT(gettimeofday);
    int result = original(now, zone);
    if (!result)
        now->tv_sec += *offset;
    return result;
}

time_t time(time_t *now) {
    NEXT(time);
    time_t result = original(NULL) + *offset;
    if (now)
        *now = result;
    return result;
}

int clock_nanosleep(clockid_t id, int flags, const struct timespec *until, struct timespec *left) {
    NEXT(clock_nanosleep);
    return original(id, flags, wall(id) && flags & TIMER_ABSTIME ? real(until, &store) : until, left);
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until) {
    NEXT(pthread_cond_timedwait);
    return original(condition, mutex, real(until, &store));
}

int pthread_cond_clockwait(pthread_cond_t *condition, pthread_mutex_t *mutex, clockid_t id, const struct timespec *until) {
    NEXT(pthread_cond_clockwait);
    return original(condition, mutex, id, wall(id) ? real(until, &store) : until);
}

int pthread_mutex_timedlock(pthread_mutex_t *mutex, const struct timespec *until) {
    NEXT(pthread_mutex_timedlock);
    return original(mutex, real(until, &store));
}

int sem_timedwait(sem_t *semaphore, const struct timespec *until) {
    NEXT(sem_timedwait);
    return original(semaphore, real(until, &store));
}

int sem_clockwait(sem_t *semaphore, clockid_t id, const struct timespec *until) {
    NEXT(sem_clockwait);
    return original(semaphore, id, wall(id) ? real(until, &store) : until);
}

long syscall(long number, ...) {
    NEXT(syscall);
    long a[6];
    va_list rest;
    va_start(rest, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(rest, long);
    va_end(rest);
    int futex_by_the_wall = number == SYS_futex && a[1] & FUTEX_CLOCK_REALTIME;
    if (futex_by_the_wall)
        a[3] = (long)real((const struct timespec *)a[3], &store);
    long result = original(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (number == SYS_clock_gettime && !result && wall(a[0]))
        ((struct timespec *)a[1])->tv_sec += *offset;
    return result;
}
