# emulate_cuda(TARGET…): what nvcc would compile of a target's sources becomes C++ (translate.py) that runs on the emulator.
find_path(NIBBLE_CUDA_HEADERS cuda_runtime.h PATHS $ENV{CUDA_HOME}/include /usr/local/cuda/include REQUIRED DOC "Where the CUDA toolkit's headers are")
find_package(Python3 COMPONENTS Interpreter REQUIRED)

set(emulator ${CMAKE_SOURCE_DIR}/tests/cuda_emulator)
set(translated ${CMAKE_BINARY_DIR}/translated)

# translate_cuda(FILE RESULT): FILE is relative to the source tree.
function(translate_cuda file result)
  string(REGEX REPLACE "\\.cu$" ".cu.cc" made ${translated}/${file})
  add_custom_command(OUTPUT ${made} DEPENDS ${CMAKE_SOURCE_DIR}/${file} ${emulator}/translate.py
    COMMAND Python3::Interpreter ${emulator}/translate.py ${CMAKE_SOURCE_DIR} ${translated} ${file} COMMENT "" VERBATIM)
  set(${result} ${made} PARENT_SCOPE)
endfunction()

if(NOT TARGET cuda_emulator)
  add_library(cuda_emulator STATIC ${emulator}/fibers.cc ${emulator}/ptx.cc ${emulator}/runtime.cc)
  target_include_directories(cuda_emulator SYSTEM PUBLIC ${NIBBLE_CUDA_HEADERS})
  target_compile_features(cuda_emulator PUBLIC cxx_std_20)
  target_compile_options(cuda_emulator PRIVATE -O3)
  add_library(CUDA::cudart_static ALIAS cuda_emulator)

  file(GLOB headers RELATIVE ${CMAKE_SOURCE_DIR} CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/kernels/cuda/*.h
    ${CMAKE_SOURCE_DIR}/src/kernels/cuda/*.cuh ${CMAKE_SOURCE_DIR}/bench/kernels/cuda/*.h)
  foreach(header ${headers})
    translate_cuda(${header} made)
    list(APPEND translated_headers ${made})
  endforeach()
  add_custom_target(translated_headers DEPENDS ${translated_headers})
endif()

function(emulate_cuda)
  foreach(target ${ARGN})
    get_target_property(sources ${target} SOURCES)
    set(kept "")
    foreach(source ${sources})
      if(source MATCHES "\\.cu$")
        cmake_path(ABSOLUTE_PATH source NORMALIZE)
        cmake_path(RELATIVE_PATH source BASE_DIRECTORY ${CMAKE_SOURCE_DIR})
        translate_cuda(${source} made)
        set_source_files_properties(${made} PROPERTIES
          COMPILE_OPTIONS "-fno-threadsafe-statics;-w;-O2")
        set(source ${made})
      endif()
      list(APPEND kept ${source})
    endforeach()
    set_property(TARGET ${target} PROPERTY SOURCES ${kept})
    target_include_directories(${target} BEFORE PRIVATE ${translated}/src ${translated}/bench/kernels/cuda ${translated})
    target_compile_options(${target} PRIVATE -include ${emulator}/emulator.h)
    target_link_libraries(${target} PUBLIC cuda_emulator)
    add_dependencies(${target} translated_headers)
  endforeach()
endfunction()
