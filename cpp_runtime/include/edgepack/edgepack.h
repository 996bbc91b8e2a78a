/* edgepack.h: run one variant of an edgepack bundle. C99 and C++.
 *
 *     edgepack_variant* v = NULL;
 *     if (edgepack_open("bundle/variants/ncnn-int8", NULL, &v) != EDGEPACK_OK ||
 *         edgepack_set_input(v, 0, image, sizeof image) != EDGEPACK_OK ||
 *         edgepack_run(v) != EDGEPACK_OK ||
 *         edgepack_get_output(v, 0, scores, sizeof scores) != EDGEPACK_OK) {
 *       fprintf(stderr, "%s\n", edgepack_error(v));
 *     }
 *     edgepack_close(v);
 *
 * Names, order, dtypes and shapes are those of the model that the bundle was built from, in C order, whatever layout
 * and types the engine uses inside. There is no global state: handles are independent, and one handle may be used by
 * one thread at a time. Nothing here throws, aborts or prints.
 */
#ifndef EDGEPACK_EDGEPACK_H_
#define EDGEPACK_EDGEPACK_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Grows when this header changes. What was compiled against version N also works with N + 1. */
#define EDGEPACK_API_VERSION 1

/* The most axes that a tensor can have. */
#define EDGEPACK_MAX_RANK 8

/* What every call returns. edgepack_error() has the sentence. */
typedef enum edgepack_status {
  EDGEPACK_OK = 0,
  EDGEPACK_INVALID_ARGUMENT = 1, /* the caller's mistake: null pointer, index or size that does not fit, wrong order */
  EDGEPACK_FILE_ERROR = 2,       /* a file is missing or can't be read */
  EDGEPACK_BAD_DESCRIPTOR = 3,   /* variant.txt is damaged, or made for another engine */
  EDGEPACK_ENGINE_MISSING = 4,   /* the engine's library is not there, or has the wrong version */
  EDGEPACK_ENGINE_ERROR = 5,     /* the engine refused the model or failed to run it */
  EDGEPACK_OUT_OF_MEMORY = 6,
  EDGEPACK_WRONG_CPU = 7 /* the engine's code was compiled for a CPU with instructions that this one lacks */
} edgepack_status;

/* Element types; in memory as C has them, little-endian as the machine is. bool is one byte, 0 or 1. */
typedef enum edgepack_dtype {
  EDGEPACK_FLOAT32 = 1,
  EDGEPACK_FLOAT16 = 2, /* IEEE 754 half precision */
  EDGEPACK_FLOAT64 = 3,
  EDGEPACK_INT8 = 4,
  EDGEPACK_INT16 = 5,
  EDGEPACK_INT32 = 6,
  EDGEPACK_INT64 = 7,
  EDGEPACK_UINT8 = 8,
  EDGEPACK_UINT16 = 9,
  EDGEPACK_UINT32 = 10,
  EDGEPACK_UINT64 = 11,
  EDGEPACK_BOOL = 12
} edgepack_dtype;

/* One input or output. Pointers are valid until edgepack_close(). */
typedef struct edgepack_tensor {
  const char* name; /* as the model has it: UTF-8, any bytes, a NUL follows the last one */
  size_t name_size; /* in bytes, without that NUL */
  edgepack_dtype dtype;
  uint32_t rank;                    /* number of axes; 0 is one single value */
  int64_t shape[EDGEPACK_MAX_RANK]; /* the first `rank` are used; all are at least 1 */
  size_t bytes;                     /* of the whole tensor */
} edgepack_tensor;

/* What a variant is. Pointers are valid until edgepack_close(). */
typedef struct edgepack_about {
  const char* engine;         /* "onnxruntime", "tflite", "ncnn" */
  const char* engine_version; /* what the engine says of itself, or what the harness was built with */
  const char* precision;      /* "fp32", "fp16", "int8" */
  size_t inputs;              /* how many there are */
  size_t outputs;
  double bound_cosine;  /* what the outputs were held to when the bundle was made */
  double bound_sqnr_db; /* NaN when there is no such bound */
} edgepack_about;

/* How to open. Zero every field that you don't set: `edgepack_options o = {0};` */
typedef struct edgepack_options {
  int32_t threads;     /* that the engine may use, 1 to 256; 0 means 1 */
  const char* library; /* path of the engine's shared library; NULL: ../lib/ as seen from the executable's folder */
} edgepack_options;

/* An open variant. */
typedef struct edgepack_variant edgepack_variant;

/* Open the variant in `folder` (the one that holds variant.txt): reads the descriptor, loads the engine and the model.
 * `options` may be NULL. On failure *variant is set as well, unless memory ran out: it holds the error text and must
 * be closed. */
edgepack_status edgepack_open(const char* folder, const edgepack_options* options, edgepack_variant** variant);

/* Close it and free everything. NULL is allowed. */
void edgepack_close(edgepack_variant* variant);

/* The sentence of the handle's last failed call; "" when there was none. Valid until the handle's next call. */
const char* edgepack_error(const edgepack_variant* variant);

/* Describe the variant. */
edgepack_status edgepack_describe(edgepack_variant* variant, edgepack_about* about);

/* Describe input `index`, counted from 0 in the model's order. */
edgepack_status edgepack_input(edgepack_variant* variant, size_t index, edgepack_tensor* tensor);

/* Describe output `index`. */
edgepack_status edgepack_output(edgepack_variant* variant, size_t index, edgepack_tensor* tensor);

/* Copy a whole tensor in. `bytes` must be that of the description. The values stay until they are set again. */
edgepack_status edgepack_set_input(edgepack_variant* variant, size_t index, const void* data, size_t bytes);

/* Run the model once. Every input must have been set. Outputs of an earlier run are gone, also when this one fails. */
edgepack_status edgepack_run(edgepack_variant* variant);

/* Copy a whole tensor out, after a run. `bytes` must be that of the description. */
edgepack_status edgepack_get_output(edgepack_variant* variant, size_t index, void* data, size_t bytes);

#ifdef __cplusplus
}
#endif

#endif /* EDGEPACK_EDGEPACK_H_ */
