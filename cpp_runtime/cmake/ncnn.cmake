# ncnn from its source tree, as the target `ncnn`: NCNN_SOURCE_DIR, and ncnn's own options (NCNN_*, WITH_LAYER_*).
if(NOT EXISTS "${NCNN_SOURCE_DIR}/src/net.h")
  message(FATAL_ERROR "NCNN_SOURCE_DIR '${NCNN_SOURCE_DIR}' holds no src/net.h; give the folder of ncnn's unpacked source.")
endif()
option(EDGEPACK_NCNN_WINOGRAD "ncnn's Winograd convolutions; off where no model has a 3x3 convolution of stride 1" ON)

add_compile_options(-ffile-prefix-map=${NCNN_SOURCE_DIR}=ncnn)
foreach(name VULKAN BUILD_TOOLS BUILD_EXAMPLES BUILD_TESTS BUILD_BENCHMARK BENCHMARK PYTHON SHARED_LIB INSTALL_SDK
        SIMPLESTL SIMPLEOCV)
  set(NCNN_${name} OFF CACHE BOOL "" FORCE)
endforeach()
foreach(name STDIO STRING DISABLE_RTTI DISABLE_EXCEPTION)
  set(NCNN_${name} ON CACHE BOOL "" FORCE)
endforeach()
add_subdirectory(${NCNN_SOURCE_DIR} ${CMAKE_BINARY_DIR}/ncnn EXCLUDE_FROM_ALL)

if(EDGEPACK_SIZE STREQUAL "small")
  target_compile_options(ncnn PRIVATE -ffast-math)  # what ncnn itself adds to a Release build, and only there
endif()
if(NOT EDGEPACK_NCNN_WINOGRAD)
  file(GLOB convolutions ${NCNN_SOURCE_DIR}/src/layer/*/convolution_*.cpp)
  set_source_files_properties(${convolutions} TARGET_DIRECTORY ncnn PROPERTIES
                              COMPILE_OPTIONS "-include;${CMAKE_CURRENT_LIST_DIR}/no_winograd.h")
endif()
