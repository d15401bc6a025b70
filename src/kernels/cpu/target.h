#pragma once

// Between NIBBLE_TARGET_BEGIN and NIBBLE_TARGET_END functions are compiled for the named features,
// whatever the file's flags say. A whole file with -mavx512f would leave AVX-512 copies of every
// inline function of its headers, and the linker may give those to callers on a machine without it.
// For the same reason all between them is in an unnamed namespace and calls nothing that is inline
// elsewhere: tools/check_isa_symbols.sh holds it to that.

#define NIBBLE_PRAGMA_(text) _Pragma(#text)
#if defined(__clang__)
#define NIBBLE_TARGET_BEGIN(features) \
  NIBBLE_PRAGMA_(clang attribute push(__attribute__((target(features))), apply_to = function))
#define NIBBLE_TARGET_END NIBBLE_PRAGMA_(clang attribute pop)
#else
#define NIBBLE_TARGET_BEGIN(features) \
  NIBBLE_PRAGMA_(GCC push_options) NIBBLE_PRAGMA_(GCC target(features))
#define NIBBLE_TARGET_END NIBBLE_PRAGMA_(GCC pop_options)
#endif
