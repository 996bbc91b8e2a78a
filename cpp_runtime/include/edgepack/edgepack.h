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
#define EDGEPACK_API_VERSION 2

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
  const char* library; /* path of the engine's shared library; NULL: in ../lib/ as seen from the executable */
} edgepack_options;

/* An open variant. */
typedef struct edgepack_variant edgepack_variant;

/* Pixel formats of edgepack_image: the bytes of one pixel in the order of their addresses, 8 bits a channel.
 * Row sizes in bytes, for a picture of `width` x `height` pixels: */
typedef enum edgepack_pixel_format {
  EDGEPACK_RGB = 1,  /* one plane, 3 * width */
  EDGEPACK_BGR = 2,  /* one plane, 3 * width */
  EDGEPACK_RGBA = 3, /* one plane, 4 * width; alpha is ignored */
  EDGEPACK_BGRA = 4, /* one plane, 4 * width; alpha is ignored */
  EDGEPACK_GRAY = 5, /* one plane, width; the value stands for R, G and B */
  EDGEPACK_NV12 = 6, /* plane 0: Y, width; plane 1: U V U V ..., width, height / 2 rows. Width and height are even */
  EDGEPACK_NV21 = 7, /* as NV12, but V U V U ... */
  EDGEPACK_I420 = 8, /* planes Y, U, V; rows of U and V: width / 2, height / 2 rows. Width and height are even */
  EDGEPACK_YUYV = 9, /* one plane, Y0 U Y1 V ..., 2 * width. The width is even */
  EDGEPACK_UYVY = 10 /* one plane, U Y0 V Y1 ..., 2 * width. The width is even */
} edgepack_pixel_format;

/* One plane of a picture, the top row first. Nothing outside data[0 .. bytes - 1] is read. */
typedef struct edgepack_plane {
  const void* data; /* any alignment */
  size_t stride;    /* bytes from the start of one row to that of the next; at least the row's size */
  size_t bytes;     /* that `data` holds; at least stride * (rows - 1) + the row's size */
} edgepack_plane;

/* A picture in memory, such as a camera's frame. Zero every field that you don't set: `edgepack_image i = {0};` */
typedef struct edgepack_image {
  edgepack_pixel_format format;
  uint32_t width;           /* in pixels, 1 to 65536 */
  uint32_t height;          /* in pixels, 1 to 65536 */
  edgepack_plane planes[3]; /* as many as the format has, the others are ignored */
  int32_t full_range; /* of YUV formats; 0: Y is 16 to 235, U and V 16 to 240, as cameras deliver it; 1: 0 to 255 */
  int32_t bt709;      /* of YUV formats; 0: the matrix of ITU-R BT.601; 1: that of BT.709 */
} edgepack_image;

/* How a picture becomes an input, as declared when the bundle was built (docs/preprocess.md has the exact rules). The
 * steps are: resize, crop, colour order, pad, (x - mean) / std, layout. Sizes are {height, width} in pixels, {0, 0}
 * where the step is left out. Pointers are valid until edgepack_close(). */
typedef struct edgepack_preprocess {
  const char* text;      /* the whole declaration as in variant.txt, "layout=NCHW color=RGB ..."; NULL: there is none */
  const char* layout;    /* the input's axes: "NCHW", "NHWC", "CHW", "HWC", "NHW" or "HW" */
  const char* color;     /* order of the channels: "RGB", "BGR" or "GRAY" */
  const char* fit;       /* how resize is reached: "stretch", "inside" or "height" */
  const char* method;    /* of resize: "bilinear" or "nearest" */
  const char* pad_place; /* where the picture lies in the padding: "center" or "top_left" */
  int32_t resize[2];     /* {n, 0}: n is the length of the shorter side */
  int32_t crop[2];       /* the central part that is kept */
  int32_t pad[2];        /* the size after padding */
  float pad_value[3];    /* per channel in the order of `color`; for GRAY all three are the same; 0 to 255 */
  float mean[3];         /* likewise, for pixels of 0 to 255 */
  float std[3];          /* likewise */
} edgepack_preprocess;

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

/* Pre-process a picture as declared, straight into the engine's memory of input `index`. Needs a declaration for that
 * input, whose result has the input's shape. The picture is read during the call only. Nothing is allocated when
 * the picture has the size of the one before. On failure the input counts as not set. */
edgepack_status edgepack_set_image(edgepack_variant* variant, size_t index, const edgepack_image* image);

/* The pre-processing that was declared for input `index`. Without a declaration every field is 0 or NULL. */
edgepack_status edgepack_get_preprocess(edgepack_variant* variant, size_t index, edgepack_preprocess* preprocess);

/* Run the model once. Every input must have been set. Outputs of an earlier run are gone, also when this one fails. */
edgepack_status edgepack_run(edgepack_variant* variant);

/* Copy a whole tensor out, after a run. `bytes` must be that of the description. */
edgepack_status edgepack_get_output(edgepack_variant* variant, size_t index, void* data, size_t bytes);

#ifdef __cplusplus
}
#endif

#endif /* EDGEPACK_EDGEPACK_H_ */
