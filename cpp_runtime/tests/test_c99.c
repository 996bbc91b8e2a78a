/* The public header compiles as C99 and links from C. */
#include <string.h>

#include "edgepack/edgepack.h"

int main(void) {
  edgepack_options options = {0};
  edgepack_variant* variant = NULL;
  int good = edgepack_open("/nonexistent", &options, &variant) == EDGEPACK_FILE_ERROR;
  good = good && variant != NULL && strlen(edgepack_error(variant)) > 0;
  edgepack_close(variant);
  return good ? 0 : 1;
}
