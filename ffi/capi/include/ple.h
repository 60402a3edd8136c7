/* The C interface of PLE: log-probabilities of given token ids under a model and an adapter.
 *
 * The numbers are those of `ple logprob`, bit for bit. Link libple_capi.so, or libple_capi.a with -lpthread -ldl -lm.
 *
 * Status. Functions that can fail return a ple_status; its values are the exit codes of the program `ple`. The sentence that
 * belongs to a status is in ple_last_error() of the same thread. Nothing aborts or unwinds into C.
 * Owners. Every pointer's owner stands beside it. PLE keeps no pointer of the caller's after a function has returned.
 * Threads. Any function may be called from any thread. Calls on one model wait for each other.
 */
#ifndef PLE_H
#define PLE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum ple_status {
    PLE_OK = 0,
    PLE_USAGE = 2,   /* an argument is missing or cannot be meant */
    PLE_FILE = 3,    /* a file of the model or adapter, or an id outside the vocabulary */
    PLE_DEVICE = 4,  /* no such device, or no memory left on it */
    PLE_NUMERIC = 5, /* a number that must be finite is not */
    PLE_BUG = 101    /* a fault of PLE itself; the model can only be closed */
} ple_status;

/* A model with at most one active adapter.
 * Owner: the caller, from ple_model_open to ple_model_close. Threads: any; calls wait for each other. */
typedef struct ple_model ple_model;

/* Version of the library, "major.minor.patch". Owner: the library; valid for ever. */
const char *ple_version(void);

/* What went wrong in the last call of this thread, naming file, field, wanted and got; "" if nothing did.
 * Owner: the library; valid until this thread's next call of a function with a status, or its end. Never NULL. */
const char *ple_last_error(void);

/* Loads a model in Hugging Face's layout (config.json and safetensors).
 *   folder   its path. Owner: caller.
 *   device   "auto" or "cpu"; NULL is "auto". Owner: caller.
 *   threads  of the CPU; 0 is all processors.
 *   out      receives the model, or NULL on failure. Owner of what it receives: caller, who gives it to ple_model_close. */
ple_status ple_model_open(const char *folder, const char *device, int threads, ple_model **out);

/* Reads a LoRA adapter in PEFT's layout and makes it the active one in place of any other; on failure the active one stays.
 * The memory of adapters is freed with the model, which takes 256 of them.
 *   model    Owner: caller.
 *   folder   its path; NULL switches adapters off. Owner: caller. */
ple_status ple_model_adapter(ple_model *model, const char *folder);

/* Log-probability of each id, at temperature 1, given the prompt and the ids before it.
 *   model    Owner: caller.
 *   prompt   [prompt_len] ids; NULL if prompt_len is 0. Owner: caller.
 *   ids      [ids_len] ids, at least one. Owner: caller.
 *   out      [ids_len] receives natural logarithms; untouched on failure; overlaps nothing. Owner: caller.
 * Without a prompt nothing predicts the first id: out[0] is NaN then, and ids_len must be at least 2. */
ple_status ple_logprob(ple_model *model, const uint32_t *prompt, size_t prompt_len, const uint32_t *ids, size_t ids_len, float *out);

/* Frees a model; NULL is nothing. No other call on it may be running, and none may follow.
 *   model    Owner: the caller until now. */
void ple_model_close(ple_model *model);

#ifdef __cplusplus
}
#endif

#endif
