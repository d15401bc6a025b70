#pragma once

#include "base/thread_pool.h"

namespace nibble {

/// Bytes a second of reading memory front to back with all threads of the pool, far more than the
/// caches hold: the median of seven passes. What a decode of large models cannot exceed. 0 where
/// there is no memory to try it on. cost  about a second, and half a GiB meanwhile
double PlainReadBandwidth(ThreadPool& pool);

}  // namespace nibble
