#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

namespace nibble {
namespace {

Error IoError(const std::string& path, std::string_view action, int err) {
  ErrorCode code = err == ENOENT || err == ENOTDIR ? ErrorCode::kNotFound : ErrorCode::kIo;
  return Error{code, fmt::format("cannot {}: {}", action, std::strerror(err)), path, {}};
}

/// Closes on every way out.
struct Fd {
  int fd = -1;
  ~Fd() {
    if (fd >= 0) ::close(fd);
  }
};

Result<int> OpenForReading(const std::string& path) {
  int fd = -1;
  do {
    fd = ::open(path.c_str(),
                O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a FIFO is refused, not waited for
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) return IoError(path, "open", errno);
  return fd;
}

Result<uint64_t> RegularSize(int fd, const std::string& path) {
  struct stat st {};
  if (::fstat(fd, &st) != 0) return IoError(path, "stat", errno);
  if (!S_ISREG(st.st_mode)) {
    return Error{ErrorCode::kCorruptFile, "not a regular file", path, {}};
  }
  return static_cast<uint64_t>(st.st_size);
}

}  // namespace

Result<MappedFile> MappedFile::Open(const std::string& path) {
  Fd file;
  NIBBLE_TRY(file.fd, OpenForReading(path));
  NIBBLE_TRY(uint64_t size, RegularSize(file.fd, path));
  MappedFile out;
  out.path_ = path;
  if (size == 0) return out;
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (data == MAP_FAILED) return IoError(path, "map", errno);
  out.data_ = static_cast<const std::byte*>(data);
  out.size_ = size;
  NIBBLE_TRY(uint64_t again, RegularSize(file.fd, path));
  if (again != size) {
    return Error{ErrorCode::kCorruptFile,
                 fmt::format("size changed from {} to {} bytes while it was opened", size, again),
                 path, "wait until whatever writes it is done"};
  }
  return out;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void MappedFile::Forget(std::span<const std::byte> part) const {
  static const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<uintptr_t>(part.data());
  const uintptr_t begin = (first + page - 1) / page * page,
                  end = (first + part.size()) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

Result<std::string> ReadFile(const std::string& path, uint64_t max_bytes) {
  Fd file;
  NIBBLE_TRY(file.fd, OpenForReading(path));
  NIBBLE_TRY(uint64_t size, RegularSize(file.fd, path));
  if (size > max_bytes) {
    return Error{ErrorCode::kCorruptFile,
                 fmt::format("{} bytes, expected at most {}", size, max_bytes),
                 path,
                 {}};
  }
  std::string out(size, '\0');
  size_t done = 0;
  while (done < out.size()) {
    ssize_t n = ::read(file.fd, out.data() + done, out.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return IoError(path, "read", errno);
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  if (done != out.size()) {
    return Error{ErrorCode::kCorruptFile,
                 fmt::format("ended after {} of {} bytes while it was read", done, out.size()),
                 path,
                 {}};
  }
  return out;
}

Result<void> WriteFileAtomically(const std::string& path, std::span<const std::byte> bytes) {
  const std::string temporary = fmt::format("{}.tmp.{}", path, ::getpid());
  auto fail = [&](std::string_view action, int err) {
    ::unlink(temporary.c_str());
    return IoError(path, action, err);
  };
  {
    Fd file;
    file.fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (file.fd < 0) return IoError(path, "create", errno);
    size_t done = 0;
    while (done < bytes.size()) {
      ssize_t n = ::write(file.fd, bytes.data() + done, bytes.size() - done);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return fail("write", errno);
      done += static_cast<size_t>(n);
    }
    if (::fsync(file.fd) != 0) return fail("write", errno);
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) return fail("rename", errno);
  return {};
}

bool FileExists(const std::string& path) {
  struct stat st {};
  return ::stat(path.c_str(), &st) == 0;
}

}  // namespace nibble
