// What versus_llama_cpp.py runs of llama.cpp, against its public API alone; the script compiles it.
//
//   llama_driver time FILE THREADS PROMPT GENERATED REPETITIONS
//     PROMPT tokens at once or, where it is 0, GENERATED one after the other, each the likeliest
//     after the one before, as `nibble bench` does. The first time is not counted.
//     -> {"samples_ns": […], "samples_cpu_ns": […]}
//   llama_driver logits FILE THREADS OUT < PROMPTS
//     PROMPTS has a line of ids with commas a prompt; OUT becomes float32 [prompts, V], the logits
//     of each prompt's last position.

#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "llama.h"

namespace {

using Ids = std::vector<llama_token>;

[[noreturn]] void Die(const char* what) {
  std::fprintf(stderr, "llama_driver: %s\n", what);
  std::exit(1);
}

long long Nanoseconds(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * 1'000'000'000LL + t.tv_nsec;
}

class Model {
 public:
  Model(const char* file, int threads, int context, ggml_type cache) {
    llama_log_set(
        [](ggml_log_level level, const char* text, void*) {
          if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
        },
        nullptr);
    llama_backend_init();
    model_ = llama_model_load_from_file(file, llama_model_default_params());
    if (model_ == nullptr) Die("the model cannot be loaded");
    llama_context_params params = llama_context_default_params();
    params.n_ctx = context;
    params.n_batch = context;
    params.n_threads = params.n_threads_batch = threads;
    params.type_k = params.type_v = cache;
    if (cache == GGML_TYPE_F32) params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    context_ = llama_init_from_model(model_, params);
    if (context_ == nullptr) Die("no context");
    vocabulary_ = llama_vocab_n_tokens(llama_model_get_vocab(model_));
  }

  int vocabulary() const { return vocabulary_; }

  void Clear() { llama_memory_clear(llama_get_memory(context_), true); }

  /// Logits of the last.
  const float* Decode(Ids& ids) {
    if (llama_decode(context_, llama_batch_get_one(ids.data(), static_cast<int>(ids.size()))) != 0)
      Die("llama_decode fails");
    return llama_get_logits_ith(context_, -1);  // waits
  }

  llama_token Likeliest(const float* logits) const {
    return static_cast<llama_token>(std::max_element(logits, logits + vocabulary_) - logits);
  }

 private:
  llama_model* model_;
  llama_context* context_;
  int vocabulary_;
};

int Time(const char* file, int threads, int prompt, int generated, int repetitions) {
  Model model(file, threads, std::max(prompt, generated + 1), GGML_TYPE_F16);
  std::mt19937 random(1);
  Ids ids(std::max(prompt, 1));
  for (llama_token& id : ids) id = static_cast<llama_token>(random() % model.vocabulary());
  std::string wall, cpu;
  for (int i = -1; i < repetitions; ++i) {
    model.Clear();
    Ids next = {prompt > 0 ? 0 : model.Likeliest(model.Decode(ids))};
    const long long w = Nanoseconds(CLOCK_MONOTONIC), c = Nanoseconds(CLOCK_PROCESS_CPUTIME_ID);
    if (prompt > 0) model.Decode(ids);
    for (int t = 0; t < generated; ++t) next[0] = model.Likeliest(model.Decode(next));
    if (i < 0) continue;
    const char* comma = i == 0 ? "" : ", ";
    wall += comma + std::to_string(Nanoseconds(CLOCK_MONOTONIC) - w);
    cpu += comma + std::to_string(Nanoseconds(CLOCK_PROCESS_CPUTIME_ID) - c);
  }
  std::printf("{\"samples_ns\": [%s], \"samples_cpu_ns\": [%s]}\n", wall.c_str(), cpu.c_str());
  return 0;
}

int Logits(const char* file, int threads, const char* out) {
  std::vector<Ids> prompts;
  size_t longest = 1;
  for (std::string line; std::getline(std::cin, line);) {
    Ids& ids = prompts.emplace_back();
    std::istringstream stream(line);
    for (std::string id; std::getline(stream, id, ',');) ids.push_back(std::stoi(id));
    longest = std::max(longest, ids.size());
  }
  Model model(file, threads, static_cast<int>(longest), GGML_TYPE_F32);
  std::FILE* to = std::fopen(out, "wb");
  if (to == nullptr) Die("the output cannot be written");
  for (Ids& ids : prompts) {
    model.Clear();
    std::fwrite(model.Decode(ids), sizeof(float), model.vocabulary(), to);
  }
  return std::fclose(to) == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string verb = argc > 1 ? argv[1] : "";
  if (verb == "time" && argc == 7)
    return Time(argv[2], std::atoi(argv[3]), std::atoi(argv[4]), std::atoi(argv[5]),
                std::atoi(argv[6]));
  if (verb == "logits" && argc == 5) return Logits(argv[2], std::atoi(argv[3]), argv[4]);
  Die("usage: llama_driver time FILE THREADS PROMPT GENERATED REPETITIONS, or logits FILE THREADS "
      "OUT");
}
