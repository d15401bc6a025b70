#pragma once

#include <optional>
#include <string>
#include <vector>

#include "command.h"

namespace nibble::app {

// What the verbs that generate text share: the options of a generation, and its numbers.

struct GenerationOptions {
  ModelOptions model;
  int64_t max_tokens = 0;
  bool ignore_eos = false;
  std::vector<std::string> stop;
  // Set only where the person said so; otherwise the checkpoint's generation_config.json speaks.
  std::optional<double> temperature, top_p, min_p, repetition, presence, frequency;
  std::optional<int64_t> top_k;
  std::optional<uint64_t> seed;

  void AddTo(CLI::App& app);
  /// A request without a prompt yet. Without --seed it draws one.
  engine::Request RequestFor(const engine::Engine& engine) const;
};

/// One message of a conversation as a chat template reads it.
Json ChatMessage(const char* role, const std::string& content);

/// Writes a piece of an answer where it is read; false once Ctrl-C was pressed.
bool StreamPiece(std::string_view piece);

/// What loading did: "1.42 GB packed at 2.3 GB/s", "1.42 GB left in the file".
std::string LoadText(const engine::Engine& engine);

/// Tokens a second of the prompt, and of the answer's after the first; 0 where there are none.
double PromptRate(const engine::Request& request, const engine::Completion& completion);
double DecodeRate(const engine::Completion& completion);

/// {"prompt_ids", "ids", "text", "finish_reason", "seed", "timings"}, and "speculation" where there
/// was any.
Json::Object CompletionJson(const engine::Engine& engine, const engine::Request& request,
                            const engine::Completion& completion);

}  // namespace nibble::app
