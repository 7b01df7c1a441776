/* The wall clock of a process, ahead or behind by what a file says: a library that is loaded before all others
 * (LD_PRELOAD), see clock.py.
 *
 * Stepped is what asks for CLOCK_REALTIME, and what waits until a moment of it: a step makes such a wait longer or
 * shorter while it lasts, as a step of the machine's own clock does. CLOCK_MONOTONIC stays as it is.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define SECOND_NS 1000000000LL
#define LOOK_NS 20000000LL
/* Waits for a moment before 2001 are for one of another clock: a machine is not up for so long. */
#define A_WALL_CLOCK_S 1000000000LL

static const int64_t *ahead_ns;

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("OUZEL_TEST_WALL_CLOCK");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file >= 0) {
    void *found = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    if (found != MAP_FAILED) ahead_ns = found;
    close(file);
  }
}

static int64_t step_ns(void) { return ahead_ns ? __atomic_load_n(ahead_ns, __ATOMIC_RELAXED) : 0; }

static int64_t ns_of(const struct timespec *when) { return when->tv_sec * SECOND_NS + when->tv_nsec; }

static struct timespec when_of(int64_t ns) {
  struct timespec when = {ns / SECOND_NS, ns % SECOND_NS};
  return when;
}

static void *next(const char *name) {
  void *found = dlvsym(RTLD_NEXT, name, "GLIBC_2.3.2"); /* of x86-64: dlsym may find the one before it */
  return found ? found : dlsym(RTLD_NEXT, name);
}

#define NEXT(name) \
  static __typeof__(name) *real; \
  if (!real) real = (__typeof__(name) *)next(#name)

/* --- what is the time ------------------------------------------------------------------------------------------- */

int clock_gettime(clockid_t clock, struct timespec *when) {
  NEXT(clock_gettime);
  int result = real(clock, when);
  if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
    *when = when_of(ns_of(when) + step_ns());
  return result;
}

int timespec_get(struct timespec *when, int base) {
  return base == TIME_UTC && clock_gettime(CLOCK_REALTIME, when) == 0 ? base : 0;
}

int gettimeofday(struct timeval *restrict when, void *restrict zone) {
  (void)zone;
  struct timespec found;
  int result = clock_gettime(CLOCK_REALTIME, &found);
  when->tv_sec = found.tv_sec;
  when->tv_usec = found.tv_nsec / 1000;
  return result;
}

time_t time(time_t *when) {
  struct timespec found;
  clock_gettime(CLOCK_REALTIME, &found);
  if (when) *when = found.tv_sec;
  return found.tv_sec;
}

/* --- wait until a time ------------------------------------------------------------------------------------------ */

/* The next look: when `until` comes by the stepped clock, or a moment from now, as the kernel counts. */
static struct timespec next_look(const struct timespec *until) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  int64_t left_ns = ns_of(until) - ns_of(&now);
  if (left_ns > LOOK_NS) left_ns = LOOK_NS;
  if (left_ns < 0) left_ns = 0;
  return when_of(ns_of(&now) - step_ns() + left_ns);
}

static int is_past(const struct timespec *until) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return ns_of(&now) >= ns_of(until);
}

#define WAIT(until, timed_out, call) \
  if ((until)->tv_sec < A_WALL_CLOCK_S) { \
    struct timespec look = *(until); \
    return call; \
  } \
  for (;;) { \
    struct timespec look = next_look(until); \
    int result = call; \
    if (!(timed_out) || is_past(until)) return result; \
  }

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
  NEXT(pthread_cond_timedwait);
  WAIT(until, result == ETIMEDOUT, real(condition, mutex, &look))
}

int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex, const struct timespec *restrict until) {
  NEXT(cnd_timedwait);
  WAIT(until, result == thrd_timedout, real(condition, mutex, &look))
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until) {
  NEXT(sem_timedwait);
  WAIT(until, result == -1 && errno == ETIMEDOUT, real(semaphore, &look))
}
