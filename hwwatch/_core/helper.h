/* What the tracer's helper is told and what it tells: shared by tracer.c, visits.c and hold.c. */
#ifndef HWW_HELPER_H
#define HWW_HELPER_H

#include "raw.h"
#include "tracer.h"

/* Of the errand under way. */
struct hww_work {
    int32_t owner;    /* of the lock, a thread id; 0: free */
    int32_t alive;    /* the helper's thread id; the kernel clears it */
    int32_t ready;    /* the helper ends with its parent */
    int32_t go;       /* the helper may begin */
    int32_t held;     /* all threads stand still, or as many as can be made to */
    int32_t release;  /* they may go on */
    int32_t at;       /* the thread it is at */
    int32_t finished; /* it came to its end */
    uint32_t progress;
    struct hww_errand *errand;
    uint64_t number; /* of the errand */
    int32_t pid;
};
extern struct hww_work hww_work;

/* visits.c; all but the first for the helper only */
void hww_visits_begin(void);
int hww_task_open(int32_t tid, const char *file);
long hww_task_read(int32_t tid, const char *file, char *text, long size);
int hww_task_ended(int32_t tid);
int hww_tasks_each(int (*each)(int32_t tid));
void hww_restart_call(int32_t tid, int begun_now);
void hww_visit(int32_t tid);
void hww_visit_all(void);

/* hold.c */
void hww_hold_all(void);

#endif
