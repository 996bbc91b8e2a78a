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
 * and types the engine uses inside. Nothing here throws, aborts or prints.
 *
 * Threads: there is no global state, so handles are independent. Any thread may call any function on any open handle:
 * each handle has a lock, and a call waits for the one before it. A sequence such as set_input, run, get_output is
 * several calls; threads that share a handle need a lock of their own around it, or a handle each. Closing a handle
 * while another thread is in a call on it is an error that nothing can detect.
 *
 * Environment: opening a variant for ONNX Runtime sets the variable ORT_DISABLE_TELEMETRY to 1 where it isn't set: its
 * official library would otherwise keep a device id and send events to its maker. Set it before you make threads that
 * read the environment, and edgepack_open() leaves it alone.
 *
 * Memory: after the first edgepack_run() of a handle, edgepack_set_input(), edgepack_run() and edgepack_get_output()
 * allocate nothing when they succeed. That is the runtime's part; what an engine allocates inside a run is its own
 * business (docs/harness.md has figures).
 */
#ifndef EDGEPACK_EDGEPACK_H_
#define EDGEPACK_EDGEPACK_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Grows when this header changes. Functions, values and fields are only added, fields at the end of their struct: a
 * source file that was written for version N compiles with N + 1. Structs may grow, so a program is compiled with the
 * header of the runtime that it links; edgepack_api_version() tells whether it was. */
#define EDGEPACK_API_VERSION 3

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
  EDGEPACK_WRONG_CPU = 7,  /* the engine's code was compiled for a CPU with instructions that this one lacks */
  EDGEPACK_UNSUPPORTED = 8 /* this engine can't do that, such as tell the time of single operators */
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
  /* What the engine holds inside. The runtime converts; these fields say what a conversion costs or loses. */
  edgepack_dtype engine_dtype;             /* another one than `dtype` where values are quantized or cast */
  uint32_t engine_rank;                    /* number of the engine's axes; it may drop axes of size 1 */
  int64_t engine_shape[EDGEPACK_MAX_RANK]; /* the first `engine_rank` are used */
  uint32_t
      axes[EDGEPACK_MAX_RANK]; /* the layout, `rank` are used: axis i inside is axis axes[i] of `shape`, before axes
                                  of size 1 are dropped. 0,1,2,3: as the model has it; 0,2,3,1: NCHW held as NHWC */
  float scale;                 /* value = (engine's integer - zero_point) * scale; 0: not quantized */
  int32_t zero_point;          /* 0 where `scale` is 0 */
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
  const char* library;  /* path of the engine's shared library as it was opened; "" for an engine that is linked in */
  int32_t threads;      /* that the engine may use */
} edgepack_about;

/* The shape of one input. */
typedef struct edgepack_shape {
  uint32_t rank;                    /* number of axes; 0 is one single value */
  int64_t sizes[EDGEPACK_MAX_RANK]; /* the first `rank` are used */
} edgepack_shape;

/* How to open. Zero every field that you don't set: `edgepack_options o = {0};` */
typedef struct edgepack_options {
  int32_t threads;     /* that the engine may use, 1 to 256; 0 means 1 */
  const char* library; /* path of the engine's shared library; NULL: in ../lib/ as seen from the executable */
} edgepack_options;

/* One operator as the engine runs it, after its own graph optimization. Times are sums over all runs of the profile.
 * Pointers are valid until the handle's next edgepack_profile() or edgepack_close(). */
typedef struct edgepack_operator {
  const char* name; /* the engine's name of this node or layer, any bytes, a NUL follows; "" where it has none */
  size_t name_size; /* in bytes, without that NUL */
  const char* type; /* the engine's name of the kind, such as "Conv" or "Convolution (NHWC, F32) IGEMM" */
  int64_t ns;       /* nanoseconds, all calls together */
  int64_t calls;    /* how often it ran */
} edgepack_operator;

/* A profile as a whole. Pointers are valid until the handle's next edgepack_profile() or edgepack_close(). */
typedef struct edgepack_profile_summary {
  int32_t runs;       /* of the model */
  size_t operators;   /* how many there are */
  int64_t total_ns;   /* of all profiled runs, by the clock */
  int64_t sum_ns;     /* of all operators */
  const char* reason; /* why the two differ by more than 5 % of the total; "" when they don't */
} edgepack_profile_summary;

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

/* EDGEPACK_API_VERSION of the header that the runtime was compiled with. */
uint32_t edgepack_api_version(void);

/* Open the variant in `folder` (the one that holds variant.txt): reads the descriptor, loads the engine and the model.
 * `options` may be NULL. On failure *variant is set as well, unless memory ran out: it holds the error text and must
 * be closed. */
edgepack_status edgepack_open(const char* folder, const edgepack_options* options, edgepack_variant** variant);

/* Of variants that differ in their input sets, such as ncnn-int8 and ncnn-int8@wide, the first one that takes inputs of
 * these shapes: *chosen is its place in `folders`. `shapes` has one for each of the model's `inputs`, in their order.
 * Reads each variant.txt and loads no engine. EDGEPACK_UNSUPPORTED: none takes them; EDGEPACK_FILE_ERROR,
 * EDGEPACK_BAD_DESCRIPTOR: a folder before it is no variant. Since version 3. */
edgepack_status edgepack_choose(const char* const* folders, size_t count, const edgepack_shape* shapes, size_t inputs,
                                size_t* chosen);

/* Close it and free everything. NULL is allowed. */
void edgepack_close(edgepack_variant* variant);

/* The sentence of the handle's last failed call; "" when there was none. Valid until the handle's next call, by
 * whatever thread: where several share a handle, use edgepack_copy_error(). */
const char* edgepack_error(const edgepack_variant* variant);

/* The same sentence, copied to `text` of `size` bytes; cut short where it doesn't fit, always with a NUL when `size` is
 * not 0. Returns the length of the whole sentence without NUL. */
size_t edgepack_copy_error(edgepack_variant* variant, char* text, size_t size);

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

/* Run the model `runs` times (1 to 10000) on the inputs that are set, with the engine's own timer of operators, and
 * describe the result. Every input must have been set. This may load the model a second time and write a temporary
 * file below TMPDIR; outputs of an earlier run are gone. EDGEPACK_UNSUPPORTED: this engine has no such timer. */
edgepack_status edgepack_profile(edgepack_variant* variant, int32_t runs, edgepack_profile_summary* summary);

/* Describe operator `index` of the last profile, in the order in which they run. */
edgepack_status edgepack_profile_operator(edgepack_variant* variant, size_t index, edgepack_operator* op);

#ifdef __cplusplus
}
#endif

#endif /* EDGEPACK_EDGEPACK_H_ */
