/* Prints the log-probability of each id of an answer.
 *
 *   embed MODEL_FOLDER ADAPTER_FOLDER|- "PROMPT IDS" "ANSWER IDS"
 *
 * Build: cc embed.c -I ../include -L ../../../target/release -lple_capi -o embed
 */
#include "ple.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST 4096

static size_t read_ids(const char *text, uint32_t *ids) {
    size_t count = 0;
    char *end;
    for (;;) {
        unsigned long id = strtoul(text, &end, 10);
        if (end == text || count == MOST) return count;
        ids[count++] = (uint32_t)id;
        text = end;
    }
}

static int failed(ple_status status) {
    fprintf(stderr, "embed: %s\n", ple_last_error());
    return (int)status;
}

int main(int argc, char **argv) {
    static uint32_t prompt[MOST], ids[MOST];
    static float logps[MOST];
    if (argc != 5) {
        fprintf(stderr, "usage: embed MODEL_FOLDER ADAPTER_FOLDER|- \"PROMPT IDS\" \"ANSWER IDS\"\n");
        return PLE_USAGE;
    }
    fprintf(stderr, "ple %s\n", ple_version());

    ple_model *model = NULL;
    ple_status status = ple_model_open(argv[1], "cpu", 0, &model);
    if (status != PLE_OK) return failed(status);
    if (strcmp(argv[2], "-") != 0) status = ple_model_adapter(model, argv[2]);

    size_t prompt_len = read_ids(argv[3], prompt), ids_len = read_ids(argv[4], ids);
    if (status == PLE_OK) status = ple_logprob(model, prompt, prompt_len, ids, ids_len, logps);
    if (status != PLE_OK) {
        int code = failed(status);
        ple_model_close(model);
        return code;
    }
    double sum = 0.0;
    for (size_t i = 0; i < ids_len; i++) {
        printf("%lu %.9g\n", (unsigned long)ids[i], (double)logps[i]);
        if (!isnan(logps[i])) sum += (double)logps[i];
    }
    fprintf(stderr, "sum %.6f\n", sum);
    ple_model_close(model);
    return 0;
}
