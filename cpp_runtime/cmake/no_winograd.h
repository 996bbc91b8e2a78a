// Put before ncnn's convolutions when no model of the build has a 3x3 convolution of stride 1: their Winograd kernels
// are then dead code, which the compiler leaves out (about 90 KB on Arm). Were one needed after all, ncnn would take
// another kernel, so this can cost time and never a right result.
#include "option.h"
#define use_winograd_convolution lightmode && false
