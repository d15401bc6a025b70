#pragma once

// What the oracle must answer, row by row, worked out by hand: "P" is the precision contract (its
// rules, its table of backends), "U" a section of the project's study of what vLLM does, whose
// words the refusals keep and whose choices ours are held against. Where ours differs on purpose,
// the row's note says why.

namespace nibble::plan {

struct OracleRow {
  const char* cites;
  const char* device;  // "sm_121", "cpu-avx2": only described; "here sm_90": in this machine
  // Words, of which the first two are operation and scheme; where silent: silu, H 2048, I 768,
  // top-k 8, one rank.
  const char* need;
  const char* backend;  // as a person writes it after --moe-backend
  // A kernel's id; or the whole text of an error; or after "~" a part of it. "$word" is one of the
  // test's kWords; "$d" names the row's device.
  const char* expected;
  const char* note = "";
  const char* if_built = "";  // kernels chosen instead, first first, once a build holds their code
};

// ---- Automatic choice, one table a scheme: the device decides (U 3.7, P backends).

inline const OracleRow kAutoW4A16[] = {
    {"U 3.7, P backends", "sm_75", "experts W4A16", "auto",
     "No NvFp4 MoE $none"
     "\n  CUTLASS: $d $cutlass; $no quantization scheme $W4A16"
     "\n  B12X: $d $b12x"
     "\n  HOPPER: $d $hopper"
     "\n  MARLIN: $d $marlin"
     "\n  CPU: $d $host"
     "\n  REFERENCE: $d $host",
     "upstream's MARLIN starts at 7.5; ours needs 8.0 (bf16 mma). U 11 R6: every candidate's "
     "reasons"},
    {"U 3.7, P backends", "sm_80", "experts W4A16", "auto", "sm80_nvfp4_bf16_experts"},
    {"U 3.7, P backends", "sm_86", "experts W4A16", "auto", "sm80_nvfp4_bf16_experts"},
    {"U 3.7, P backends", "sm_87", "experts W4A16", "auto", "sm80_nvfp4_bf16_experts"},
    {"U 3.7, P backends", "sm_89", "experts W4A16", "auto", "sm80_nvfp4_bf16_experts"},
    {"U 3.7, U 3.2", "sm_90", "experts W4A16", "auto", "sm90_nvfp4_bf16_experts"},
    {"U 3.7, P backends", "sm_100", "experts W4A16", "auto", "sm80_nvfp4_bf16_experts",
     "CUTLASS is W4A4 alone: a W4A16 label never reaches it"},
    {"U 3.7, P backends", "sm_103", "experts W4A16", "auto", "sm80_nvfp4_bf16_experts"},
    {"U 3.7, P backends", "sm_110", "experts W4A16", "auto", "sm80_nvfp4_bf16_experts"},
    {"U 3.2, U 10, P backends", "sm_120", "experts W4A16", "auto", "sm120_nvfp4_bf16_experts",
     "upstream never selects B12X by itself and takes MARLIN; P: on Blackwell W4A16 prefers B12X"},
    {"U 3.2, U 10, P backends", "sm_121", "experts W4A16", "auto", "sm120_nvfp4_bf16_experts",
     "as on 12.0"},
    {"P backends", "sm_130", "experts W4A16", "auto", "sm80_nvfp4_bf16_experts",
     "a device of tomorrow: MARLIN is portable and has no upper end"},
    {"P backends", "cpu-scalar", "experts W4A16", "auto", "scalar_nvfp4_bf16_experts",
     "upstream has no CPU answer (U 3.7)"},
    {"P backends", "cpu-avx2", "experts W4A16", "auto", "avx2_nvfp4_bf16_experts"},
    {"P backends", "cpu-avx512", "experts W4A16", "auto", "avx512_nvfp4_bf16_experts"},
    {"P backends", "cpu-avx512bf16", "experts W4A16", "auto", "avx512bf16_nvfp4_bf16_experts"},
    {"P backends", "here cpu-avx2", "experts W4A16", "auto", "avx2_nvfp4_bf16_experts"},
};

inline const OracleRow kAutoW4A4[] = {
    {"U 3.7, P backends", "sm_75", "experts W4A4", "auto",
     "No NvFp4 MoE $none"
     "\n  CUTLASS: $d $cutlass"
     "\n  B12X: $d $b12x"
     "\n  HOPPER: $d $hopper"
     "\n  MARLIN: $d $marlin"
     "\n  CPU: $d $host"
     "\n  REFERENCE: $d $host",
     "upstream runs MARLIN, weight-only; ours needs 8.0, and REFERENCE is never a CUDA device's"},
    {"U 3.7, P 4", "sm_80", "experts W4A4", "auto", "sm80_nvfp4_nvfp4_experts",
     "upstream silently runs W4A16 on non-Blackwell; ours quantizes as the format says"},
    {"U 3.7, P 4", "sm_86", "experts W4A4", "auto", "sm80_nvfp4_nvfp4_experts", "as on 8.0"},
    {"U 3.7, P 4", "sm_89", "experts W4A4", "auto", "sm80_nvfp4_nvfp4_experts", "as on 8.0"},
    {"U 3.7, P 4", "sm_90", "experts W4A4", "auto", "sm90_nvfp4_nvfp4_experts",
     "upstream's HUMMING drops the input scales; ours is format-faithful"},
    {"U 3.7, P backends", "sm_100", "experts W4A4", "auto", "sm100_nvfp4_nvfp4_experts"},
    {"U 3.7, P backends", "sm_103", "experts W4A4", "auto", "sm100_nvfp4_nvfp4_experts"},
    {"U 3.7, P backends", "sm_110", "experts W4A4", "auto", "sm80_nvfp4_nvfp4_experts",
     "upstream: VLLM_CUTLASS; our CUTLASS is for 10.0 and 10.3, MARLIN computes the same numbers"},
    {"U 3.7, P backends", "sm_120", "experts W4A4", "auto", "sm120_nvfp4_nvfp4_experts",
     "upstream: FLASHINFER_CUTLASS; our native kernel of 12.x is B12X"},
    {"U 3.7, P backends", "sm_121", "experts W4A4", "auto", "sm120_nvfp4_nvfp4_experts",
     "as on 12.0"},
    {"P backends", "sm_130", "experts W4A4", "auto", "sm80_nvfp4_nvfp4_experts"},
    {"P backends", "cpu-scalar", "experts W4A4", "auto", "scalar_nvfp4_nvfp4_experts"},
    {"P backends", "cpu-avx2", "experts W4A4", "auto", "avx2_nvfp4_nvfp4_experts"},
    {"P backends", "cpu-avx512", "experts W4A4", "auto", "avx512_nvfp4_nvfp4_experts"},
    {"P backends", "cpu-avx512bf16", "experts W4A4", "auto", "avx512bf16_nvfp4_nvfp4_experts"},
    {"P backends", "here cpu-scalar", "experts W4A4", "auto", "scalar_nvfp4_nvfp4_experts"},
};

inline const OracleRow kAutoOthers[] = {
    {"U 7, P backends", "sm_75", "experts W8A8", "auto",
     "No FP8 MoE $none"
     "\n  CUTLASS: $d $cutlass; $no quantization scheme $W8A8"
     "\n  B12X: $d $b12x; $no quantization scheme $W8A8"
     "\n  HOPPER: $d $hopper"
     "\n  MARLIN: $d $marlin"
     "\n  CPU: $d $host"
     "\n  REFERENCE: $d $host"},
    {"U 7, P backends", "sm_80", "experts W8A8", "auto", "sm80_fp8_experts"},
    {"U 7, P backends", "sm_89", "experts W8A8", "auto", "sm80_fp8_experts",
     "upstream: TRITON, which has no role here"},
    {"U 7, P backends", "sm_90", "experts W8A8", "auto", "sm90_fp8_experts",
     "upstream: FLASHINFER_CUTLASS; HOPPER is ours on 9.0"},
    {"U 7, P backends", "sm_100", "experts W8A8", "auto", "sm80_fp8_experts",
     "upstream: TRTLLM; our CUTLASS is W4A4 alone"},
    {"U 7, P backends", "sm_110", "experts W8A8", "auto", "sm80_fp8_experts"},
    {"U 7, P backends", "sm_121", "experts W8A8", "auto", "sm80_fp8_experts",
     "upstream: FLASHINFER_CUTLASS; B12X has no FP8"},
    {"U 7, P backends", "sm_90", "experts W8A8-token", "auto", "sm90_fp8_experts"},
    {"U 7, P backends", "sm_120", "experts W8A8-block", "auto", "sm80_fp8_experts"},
    {"U 7, P 5", "sm_86", "experts W8A16", "auto", "sm80_fp8_experts"},
    {"P backends", "cpu-avx2", "experts W8A8", "auto", "avx2_fp8_experts",
     "the device is only described: planned and marked"},
    {"P backends", "here cpu-avx512bf16", "experts W8A8", "auto",
     "No FP8 MoE $none"
     "\n  CUTLASS: $d $cutlass; $no quantization scheme $W8A8"
     "\n  B12X: $d $b12x; $no quantization scheme $W8A8"
     "\n  HOPPER: $d $hopper"
     "\n  MARLIN: $d $marlin"
     "\n  CPU: $absent"
     "\n  REFERENCE: $absent",
     "P: on a present device a kernel that the build lacks is refused with that reason",
     "avx512bf16_fp8_experts avx512_fp8_experts avx2_fp8_experts scalar_fp8_experts "
     "reference_fp8_experts"},
    {"P backends", "sm_75", "experts BF16", "auto",
     "No BF16 MoE $none"
     "\n  CUTLASS: $d $cutlass; $no quantization scheme $BF16"
     "\n  B12X: $d $b12x; $no quantization scheme $BF16"
     "\n  HOPPER: $d $hopper"
     "\n  MARLIN: $d $marlin"
     "\n  CPU: $d $host"
     "\n  REFERENCE: $d $host"},
    {"P backends", "sm_80", "experts BF16", "auto", "sm80_bf16_bf16_experts"},
    {"P backends", "sm_90", "experts BF16", "auto", "sm90_bf16_bf16_experts"},
    {"P 9", "sm_100", "experts BF16", "auto", "sm80_bf16_bf16_experts"},
    {"P 9", "sm_121", "experts BF16", "auto", "sm80_bf16_bf16_experts"},
    {"P backends", "cpu-scalar", "experts BF16", "auto", "scalar_bf16_bf16_experts"},
    {"P backends", "cpu-avx512bf16", "experts BF16", "auto", "avx512bf16_bf16_bf16_experts"},
    {"P 5, U 3.6", "sm_121", "experts W4A8", "auto",
     "No NvFp4 MoE $none"
     "\n  CUTLASS: $d $cutlass; $no quantization scheme $W4A8"
     "\n  B12X: $no quantization scheme $W4A8"
     "\n  HOPPER: $d $hopper; $no quantization scheme $W4A8"
     "\n  MARLIN: $no quantization scheme $W4A8"
     "\n  CPU: $d $host; $no quantization scheme $W4A8"
     "\n  REFERENCE: $d $host; $no quantization scheme $W4A8",
     "upstream's MARLIN never looks at the activation key; here both keys are matched"},
    {"P 5, U 3.6", "cpu-avx512bf16", "experts W4A8", "auto",
     "No NvFp4 MoE $none"
     "\n  CUTLASS: $d $cutlass; $no quantization scheme $W4A8"
     "\n  B12X: $d $b12x; $no quantization scheme $W4A8"
     "\n  HOPPER: $d $hopper; $no quantization scheme $W4A8"
     "\n  MARLIN: $d $marlin; $no quantization scheme $W4A8"
     "\n  CPU: $no quantization scheme $W4A8"
     "\n  REFERENCE: $no quantization scheme $W4A8"},
    {"P 5, U 3.6", "sm_100", "experts W4A4-token", "auto",
     "~\n  CUTLASS: $no quantization scheme $W4A4-token\n  B12X: ",
     "upstream's TRTLLM takes a global activation scale a token; no checkpoint declares one"},
    {"P 5, U 3.6", "sm_90", "experts W4A4-token", "auto",
     "~\n  HOPPER: $no quantization scheme $W4A4-token\n",
     "upstream's HUMMING normalises it to the static one: not the declared precision"},
    {"U 7, P backends", "sm_80", "experts W8A16-channel", "auto", "sm80_fp8_experts"},
    {"U 7, P backends", "sm_90", "experts W8A16-block", "auto", "sm90_fp8_experts"},
    {"U 7, P backends", "sm_103", "experts W8A8-channel", "auto", "sm80_fp8_experts"},
    {"U 7, P backends", "sm_89", "experts W8A8-dynamic", "auto", "sm80_fp8_experts"},
    {"P backends", "cpu-avx2", "experts W8A8-block", "auto", "avx2_fp8_experts"},
    {"P backends", "cpu-scalar", "experts W8A8-token", "auto", "scalar_fp8_experts"},
    {"P backends", "cpu-avx512", "experts W8A16", "auto", "avx512_fp8_experts"},
    {"P 9", "sm_110", "experts BF16", "auto", "sm80_bf16_bf16_experts"},
    {"P backends", "here cpu-avx2", "experts BF16", "auto", "avx2_bf16_bf16_experts"},
};

inline const OracleRow kLinears[] = {
    {"U 3.8, P backends", "sm_75", "linear W4A16", "auto",
     "No NvFp4 linear $none"
     "\n  CUTLASS: $d $cutlass; $no quantization scheme $W4A16"
     "\n  B12X: $d $b12x"
     "\n  HOPPER: $d $hopper"
     "\n  MARLIN: $d $marlin"
     "\n  CPU: $d $host"
     "\n  REFERENCE: $d $host"},
    {"U 3.8, P backends", "sm_75", "linear W4A4", "auto",
     "No NvFp4 linear $none"
     "\n  CUTLASS: $d $cutlass"
     "\n  B12X: $d $b12x"
     "\n  HOPPER: $d $hopper"
     "\n  MARLIN: $d $marlin"
     "\n  CPU: $d $host"
     "\n  REFERENCE: $d $host"},
    {"P backends", "sm_75", "linear W8A8", "auto",
     "No FP8 linear $none"
     "\n  CUTLASS: $d $cutlass; $no quantization scheme $W8A8"
     "\n  B12X: $d $b12x; $no quantization scheme $W8A8"
     "\n  HOPPER: $d $hopper"
     "\n  MARLIN: $d $marlin"
     "\n  CPU: $d $host"
     "\n  REFERENCE: $d $host"},
    {"P backends", "sm_75", "linear BF16", "auto",
     "No BF16 linear $none"
     "\n  CUTLASS: $d $cutlass; $no quantization scheme $BF16"
     "\n  B12X: $d $b12x; $no quantization scheme $BF16"
     "\n  HOPPER: $d $hopper"
     "\n  MARLIN: $d $marlin"
     "\n  CPU: $d $host"
     "\n  REFERENCE: $d $host"},
    {"U 3.8, P backends", "sm_80", "linear W4A16", "auto", "sm80_nvfp4_bf16_linear"},
    {"U 3.8, P 4", "sm_89", "linear W4A4", "auto", "sm80_nvfp4_nvfp4_linear"},
    {"U 3.8", "sm_90", "linear W4A16", "auto", "sm90_nvfp4_bf16_linear",
     "upstream: Humming, then Marlin"},
    {"U 9, P backends", "sm_90", "linear W4A4", "auto", "sm90_nvfp4_nvfp4_linear",
     "a W4A16 kernel never precedes a W4A4 one"},
    {"U 9, P backends", "sm_100", "linear W4A4", "auto", "sm100_nvfp4_nvfp4_linear"},
    {"U 3.8, P backends", "sm_100", "linear W4A16", "auto", "sm80_nvfp4_bf16_linear",
     "upstream: CuTe-DSL W4A16, which has no role here"},
    {"U 9, P backends", "sm_121", "linear W4A16", "auto", "sm120_nvfp4_bf16_linear",
     "upstream: Marlin; P prefers B12X on Blackwell"},
    {"U 9, P backends", "sm_121", "linear W4A4", "auto", "sm120_nvfp4_nvfp4_linear"},
    {"P 9", "sm_121", "linear W8A8", "auto", "sm80_fp8_linear"},
    {"P 9", "sm_90", "linear W8A8", "auto", "sm90_fp8_linear"},
    {"P 9", "sm_90", "linear BF16", "auto", "sm90_bf16_bf16_linear"},
    {"P 9", "sm_120", "linear BF16", "auto", "sm80_bf16_bf16_linear"},
    {"P backends", "cpu-avx512bf16", "linear W4A16", "auto", "avx512bf16_nvfp4_bf16_linear"},
    {"P backends", "cpu-avx512", "linear BF16", "auto", "avx512_bf16_bf16_linear"},
    {"P backends", "cpu-scalar", "linear W4A4", "auto", "scalar_nvfp4_nvfp4_linear"},
    {"P backends", "cpu-avx512", "linear W8A8-block", "auto", "avx512_fp8_linear"},
    {"U 3.8, P 5", "sm_121", "linear W4A4", "humming",
     "NvFp4 linear backend 'HOPPER' $since $d $hopper"},
    {"U 3.8, P 5", "sm_100", "linear W4A16", "cutlass",
     "NvFp4 linear backend 'CUTLASS' $since $no quantization scheme $W4A16",
     "upstream: only Marlin, Humming and the two -W4A16 kernels can serve a W4A16 linear"},
    {"P 5", "sm_121", "linear W8A8", "b12x",
     "FP8 linear backend B12X $since $no quantization scheme $W8A8"},
    {"P 5", "sm_121", "linear BF16", "b12x",
     "BF16 linear backend 'B12X' $since $no quantization scheme $BF16"},
    {"P backends", "cpu-avx2", "linear BF16", "emulation", "reference_bf16_f64_linear"},
    {"P backends", "sm_80", "glue BF16", "auto", "cuda_bf16_glue"},
    {"P backends", "sm_121", "glue BF16", "auto", "cuda_bf16_glue"},
    {"P backends", "cpu-scalar", "glue BF16", "auto", "cpu_f32_glue"},
    {"P backends", "cpu-avx2", "glue BF16", "reference", "reference_f64_glue"},
    {"P backends", "sm_75", "glue BF16", "auto",
     "No attention $none"
     "\n  MARLIN: $d $marlin"
     "\n  CPU: $d $host"
     "\n  REFERENCE: $d $host"},
    {"U 3.4", "sm_121", "glue BF16", "b12x",
     "attention backend 'B12X' does not support the deployment configuration.",
     "B12X has no such kernel at all: U 3.4's sentence without a reason"},
    {"P 9", "sm_86", "linear W8A16", "auto", "sm80_fp8_linear"},
    {"P 9", "sm_90", "linear W8A16-channel", "auto", "sm90_fp8_linear"},
    {"P 9", "sm_121", "linear W8A8-token", "marlin", "sm80_fp8_linear"},
    {"P backends", "sm_80", "linear BF16", "auto", "sm80_bf16_bf16_linear"},
    {"P backends", "cpu-scalar", "linear W8A8-token", "auto", "scalar_fp8_linear"},
    {"P backends", "cpu-avx2", "linear W8A16-block", "emulation", "reference_fp8_linear"},
    {"P 5", "sm_90", "linear W8A8", "cutlass",
     "FP8 linear backend CUTLASS $since $d $cutlass; $no quantization scheme $W8A8"},
    {"P 5", "sm_90", "linear W8A8-block", "emulation",
     "FP8 linear backend REFERENCE $since $d "
     "$host"},
    {"P backends", "sm_75", "linear W8A8", "marlin", "FP8 linear backend MARLIN $since $d $marlin"},
    {"P 5", "sm_90", "linear W8A8-block bias", "humming",
     "FP8 linear backend HOPPER $since $no "
     "bias"},
    {"P 5", "cpu-avx512bf16", "linear BF16", "marlin",
     "BF16 linear backend 'MARLIN' $since $d $marlin"},
};

// ---- A backend by name: it, or upstream's sentence with every reason; never another's kernel (U
// 3.4, P 5).

inline const OracleRow kMarlin[] = {
    {"U 3.4, P backends", "sm_80", "experts W4A16", "marlin", "sm80_nvfp4_bf16_experts"},
    {"U 3.4, P backends", "sm_89", "experts W4A16", "MARLIN", "sm80_nvfp4_bf16_experts"},
    {"U 3.4, P backends", "sm_90", "experts W4A16", "marlin", "sm80_nvfp4_bf16_experts"},
    {"U 3.4, P backends", "sm_121", "experts W4A16", "marlin", "sm80_nvfp4_bf16_experts"},
    {"U 4.2, P 4", "sm_90", "experts W4A4", "marlin", "sm80_nvfp4_nvfp4_experts",
     "upstream's MARLIN drops the activation scales; ours has no weight-only backend"},
    {"U 4.2, P 4", "sm_100", "experts W4A4", "marlin", "sm80_nvfp4_nvfp4_experts", "as on 9.0"},
    {"U 4.2, P 4", "sm_121", "experts W4A4", "marlin", "sm80_nvfp4_nvfp4_experts", "as on 9.0"},
    {"U 7, P backends", "sm_121", "experts W8A8", "marlin", "sm80_fp8_experts"},
    {"P backends", "sm_86", "experts BF16", "marlin", "sm80_bf16_bf16_experts",
     "upstream: moe_backend='marlin' is not supported for unquantized MoE (U 7, U 10 #56832)"},
    {"U 3.6, P backends", "sm_75", "experts W4A16", "marlin",
     "NvFp4 MoE backend 'MARLIN' $since $d $marlin", "upstream accepts 7.5"},
    {"U 3.6, P backends", "sm_75", "experts W4A4", "marlin",
     "NvFp4 MoE backend 'MARLIN' $since $d $marlin", "upstream accepts 7.5, as W4A16"},
    {"U 7, P backends", "sm_75", "experts W8A8", "marlin",
     "FP8 MoE backend MARLIN $since $d $marlin", "U 7: FP8's sentences have no quotes"},
    {"U 3.5, P backends", "cpu-avx512bf16", "experts W4A16", "marlin",
     "NvFp4 MoE backend 'MARLIN' $since $d $marlin"},
    {"U 3.5, P backends", "here cpu-avx512bf16", "experts W4A16", "marlin",
     "NvFp4 MoE backend 'MARLIN' $since $d $marlin",
     "what this build lacks is no reason where the device is of another kind"},
    {"P backends", "here sm_121", "experts W4A16", "marlin",
     "NvFp4 MoE backend 'MARLIN' $since $absent", "", "sm80_nvfp4_bf16_experts"},
    {"P backends", "here sm_75", "experts W4A4", "marlin", "~NvFp4 MoE backend 'MARLIN' $since ",
     "with or without the kernel, 7.5 is refused"},
    {"P 5, U 3.6", "sm_90", "experts W4A8", "marlin",
     "NvFp4 MoE backend 'MARLIN' $since $no quantization scheme $W4A8",
     "upstream ignores the activation key and would run W4A16"},
    {"U 7, P backends", "sm_89", "experts W8A8-dynamic", "marlin", "sm80_fp8_experts"},
    {"U 10 #56832, P backends", "sm_90", "experts BF16", "marlin", "sm80_bf16_bf16_experts",
     "the draft's BF16 experts, which upstream's MARLIN refuses"},
    {"P backends", "cpu-avx512bf16", "experts BF16", "marlin",
     "BF16 MoE backend 'MARLIN' $since $d $marlin"},
    {"U 3.5", "sm_80", "experts W8A8 H=96", "marlin",
     "FP8 MoE backend MARLIN $since $no 96 hidden dim is not supported: needs a multiple of 64"},
};

inline const OracleRow kHopper[] = {
    {"U 3.4, P backends", "sm_90", "experts W4A16", "humming", "sm90_nvfp4_bf16_experts"},
    {"U 3.4, P backends", "sm_90", "experts W4A4", "humming", "sm90_nvfp4_nvfp4_experts"},
    {"P backends", "sm_90", "experts W4A16", "hopper", "sm90_nvfp4_bf16_experts"},
    {"P backends", "sm_90", "experts W4A4", "Hopper", "sm90_nvfp4_nvfp4_experts"},
    {"U 7, P backends", "sm_90", "experts W8A8", "humming", "sm90_fp8_experts"},
    {"P backends", "sm_90", "experts BF16", "humming", "sm90_bf16_bf16_experts"},
    {"U 3.6, P backends", "sm_75", "experts W4A16", "humming",
     "NvFp4 MoE backend 'HOPPER' $since $d $hopper",
     "upstream accepts 7.5 and newer; wgmma is 9.0's"},
    {"U 3.6, P backends", "sm_80", "experts W4A16", "humming",
     "NvFp4 MoE backend 'HOPPER' $since $d $hopper", "as on 7.5"},
    {"U 3.6, P backends", "sm_89", "experts W4A4", "hopper",
     "NvFp4 MoE backend 'HOPPER' $since $d $hopper", "as on 7.5"},
    {"U 3.6, P backends", "sm_100", "experts W4A16", "humming",
     "NvFp4 MoE backend 'HOPPER' $since $d $hopper", "wgmma is gone from 10.0"},
    {"U 3.6, P backends", "sm_121", "experts W4A4", "humming",
     "NvFp4 MoE backend 'HOPPER' $since $d $hopper"},
    {"U 7, P backends", "sm_103", "experts W8A8", "humming",
     "FP8 MoE backend HOPPER $since $d $hopper"},
    {"P backends", "cpu-avx2", "experts W4A16", "humming",
     "NvFp4 MoE backend 'HOPPER' $since $d $hopper"},
    {"P backends", "here sm_90", "experts W4A16", "hopper",
     "NvFp4 MoE backend 'HOPPER' $since $absent", "", "sm90_nvfp4_bf16_experts"},
    {"P backends", "here sm_90", "experts W4A4", "hopper",
     "NvFp4 MoE backend 'HOPPER' $since $absent", "", "sm90_nvfp4_nvfp4_experts"},
    {"P backends, P 5", "here sm_90", "experts W4A16", "auto",
     "No NvFp4 MoE $none"
     "\n  CUTLASS: $absent; $d $cutlass; $no quantization scheme $W4A16"
     "\n  B12X: $absent; $d $b12x"
     "\n  HOPPER: $absent"
     "\n  MARLIN: $absent"
     "\n  CPU: $d $host"
     "\n  REFERENCE: $d $host",
     "a present GPU is never left for the CPU in silence",
     "sm90_nvfp4_bf16_experts sm80_nvfp4_bf16_experts"},
};

inline const OracleRow kB12xRows[] = {
    {"U 9, P backends", "sm_120", "experts W4A16", "b12x", "sm120_nvfp4_bf16_experts"},
    {"U 9, P backends", "sm_121", "experts W4A16", "b12x", "sm120_nvfp4_bf16_experts"},
    {"U 9, P backends", "sm_120", "experts W4A4", "b12x", "sm120_nvfp4_nvfp4_experts"},
    {"U 9, P backends", "sm_121", "experts W4A4", "B12X", "sm120_nvfp4_nvfp4_experts"},
    {"U 5.6, U 9, P 2", "sm_121", "experts W4A16", "flashinfer_b12x", "sm120_nvfp4_bf16_experts",
     "the pull request's case: upstream's release runs W4A4 here in silence"},
    {"U 3.4, P backends", "sm_121", "experts W4A4", "flashinfer-b12x", "sm120_nvfp4_nvfp4_experts",
     "U 3.4: '-' is '_'"},
    {"U 3.6, P backends", "sm_90", "experts W4A16", "b12x",
     "NvFp4 MoE backend 'B12X' $since $d $b12x"},
    {"U 3.6, P backends", "sm_89", "experts W4A4", "flashinfer_b12x",
     "NvFp4 MoE backend 'B12X' $since $d $b12x"},
    {"U 3.6, P backends", "sm_100", "experts W4A4", "b12x",
     "NvFp4 MoE backend 'B12X' $since $d $b12x"},
    {"U 3.6, P backends", "sm_110", "experts W4A16", "b12x",
     "NvFp4 MoE backend 'B12X' $since $d $b12x", "11.0 is Blackwell, and not of family 120"},
    {"U 3.6, P backends", "sm_130", "experts W4A16", "b12x",
     "NvFp4 MoE backend 'B12X' $since $d $b12x"},
    {"U 3.6, P backends", "cpu-avx512bf16", "experts W4A16", "b12x",
     "NvFp4 MoE backend 'B12X' $since $d $b12x"},
    {"U 7, P 5", "sm_121", "experts W8A8", "flashinfer_b12x",
     "FP8 MoE backend B12X $since $no quantization scheme $W8A8",
     "upstream: moe_backend='flashinfer_b12x' is not supported for FP8 MoE; ours names the keys"},
    {"U 7, P 5", "sm_90", "experts W8A8-token", "b12x",
     "FP8 MoE backend B12X $since $d $b12x; $no quantization scheme $W8A8-token"},
    {"U 7, P 5", "sm_120", "experts W8A8-block", "b12x",
     "FP8 MoE backend B12X $since $no quantization scheme $W8A8-block"},
    {"U 10 #56832, P 5", "sm_121", "experts BF16", "b12x",
     "BF16 MoE backend 'B12X' $since $no quantization scheme $BF16"},
    {"U 3.6, P 5", "sm_121", "experts W4A8", "b12x",
     "NvFp4 MoE backend 'B12X' $since $no quantization scheme $W4A8",
     "upstream's B12X can raise MXFP8 activations; P's table has no such pair"},
    {"P backends", "here sm_121", "experts W4A16", "b12x",
     "NvFp4 MoE backend 'B12X' $since $absent", "", "sm120_nvfp4_bf16_experts"},
    {"P backends", "here sm_120", "experts W4A4", "flashinfer_b12x",
     "NvFp4 MoE backend 'B12X' $since $absent", "", "sm120_nvfp4_nvfp4_experts"},
    {"P backends", "here sm_120", "experts W4A16", "auto", "~\n  B12X: $absent\n", "",
     "sm120_nvfp4_bf16_experts sm80_nvfp4_bf16_experts"},
};

inline const OracleRow kCutlassRows[] = {
    {"U 3.4, P backends", "sm_100", "experts W4A4", "cutlass", "sm100_nvfp4_nvfp4_experts"},
    {"U 3.4, P backends", "sm_103", "experts W4A4", "CUTLASS", "sm100_nvfp4_nvfp4_experts"},
    {"U 3.4, P backends", "sm_100", "experts W4A4", "flashinfer_cutlass",
     "sm100_nvfp4_nvfp4_experts"},
    {"U 3.4, P backends", "sm_103", "experts W4A4", "flashinfer_trtllm",
     "sm100_nvfp4_nvfp4_experts"},
    {"U 3.4, P backends", "sm_100", "experts W4A4", "FlashInfer-CuteDSL",
     "sm100_nvfp4_nvfp4_experts"},
    {"U 3.6, P 5", "sm_100", "experts W4A16", "cutlass",
     "NvFp4 MoE backend 'CUTLASS' $since $no quantization scheme $W4A16",
     "the contract's heart: a W4A16 label is not run W4A4"},
    {"U 3.6, P 5", "sm_103", "experts W4A16", "flashinfer_trtllm",
     "NvFp4 MoE backend 'CUTLASS' $since $no quantization scheme $W4A16"},
    {"U 3.6, P backends", "sm_90", "experts W4A4", "flashinfer_cutlass",
     "NvFp4 MoE backend 'CUTLASS' $since $d $cutlass", "U 3.6: NVFP4 needs cc >= 10.0 there too"},
    {"U 3.6, P backends", "sm_110", "experts W4A4", "cutlass",
     "NvFp4 MoE backend 'CUTLASS' $since $d $cutlass",
     "upstream's VLLM_CUTLASS has family 110; ours 10.0 and 10.3"},
    {"U 3.6, P backends", "sm_120", "experts W4A4", "flashinfer_cutlass",
     "NvFp4 MoE backend 'CUTLASS' $since $d $cutlass",
     "upstream accepts family 120 (U 10: compiles, garbage out on GB10); ours there is B12X"},
    {"U 3.6, P backends", "sm_121", "experts W4A16", "cutlass",
     "NvFp4 MoE backend 'CUTLASS' $since $d $cutlass; $no quantization scheme $W4A16"},
    {"U 7, P 5", "sm_100", "experts W8A8", "cutlass",
     "FP8 MoE backend CUTLASS $since $no quantization scheme $W8A8",
     "upstream: disabled for ModelOpt FP8"},
    {"U 3.6, P 5", "sm_100", "experts W4A4-token", "flashinfer_trtllm",
     "NvFp4 MoE backend 'CUTLASS' $since $no quantization scheme $W4A4-token",
     "upstream's TRTLLM takes it; no checkpoint declares it"},
    {"P backends", "cpu-avx512", "experts W4A4", "flashinfer_cutedsl",
     "NvFp4 MoE backend 'CUTLASS' $since $d $cutlass"},
    {"P backends", "here sm_100", "experts W4A4", "cutlass",
     "NvFp4 MoE backend 'CUTLASS' $since $absent", "", "sm100_nvfp4_nvfp4_experts"},
    {"U 7, P 5", "sm_100", "experts W8A8-block", "flashinfer_trtllm",
     "FP8 MoE backend CUTLASS $since $no quantization scheme $W8A8-block",
     "upstream's TRTLLM has FP8; ours of that role is W4A4 alone"},
    {"U 7, P 5", "sm_100", "experts BF16", "cutlass",
     "BF16 MoE backend 'CUTLASS' $since $no quantization scheme $BF16",
     "upstream: not in the map of unquantized MoE"},
    {"U 7, P 5", "sm_121", "experts BF16", "flashinfer_cutlass",
     "BF16 MoE backend 'CUTLASS' $since $d $cutlass; $no quantization scheme $BF16"},
};

inline const OracleRow kHosts[] = {
    {"P backends", "cpu-scalar", "experts W4A16", "emulation", "reference_nvfp4_f64_experts",
     "upstream's EMULATION never runs W4A16 (U 3.6); REFERENCE runs every scheme"},
    {"P backends", "cpu-avx512bf16", "experts W4A4", "emulation", "reference_nvfp4_nvfp4_experts"},
    {"P backends", "here cpu-avx2", "experts W4A16", "reference", "reference_nvfp4_f64_experts"},
    {"P backends", "cpu-avx2", "experts BF16", "reference", "reference_bf16_f64_experts"},
    {"P backends", "cpu-avx2", "experts W8A8", "emulation", "reference_fp8_experts"},
    {"P backends", "here cpu-avx2", "experts W8A8", "emulation",
     "FP8 MoE backend REFERENCE $since $absent", "", "reference_fp8_experts"},
    {"P backends", "here cpu-avx2", "experts W8A16", "cpu", "FP8 MoE backend CPU $since $absent",
     "", "avx2_fp8_experts scalar_fp8_experts"},
    {"U 3.6, P backends", "sm_80", "experts W4A4", "emulation",
     "NvFp4 MoE backend 'REFERENCE' $since $d $host",
     "upstream emulates on CUDA; ours is a CPU's, whatever the person has"},
    {"U 3.6, P backends", "sm_121", "experts W4A16", "emulation",
     "NvFp4 MoE backend 'REFERENCE' $since $d $host", "upstream: never W4A16"},
    {"P backends", "here sm_90", "experts W4A4", "reference",
     "NvFp4 MoE backend 'REFERENCE' $since $d $host"},
    {"P backends", "cpu-scalar", "experts W4A16", "cpu", "scalar_nvfp4_bf16_experts"},
    {"P backends", "cpu-avx2", "experts W4A4", "CPU", "avx2_nvfp4_nvfp4_experts"},
    {"P backends", "cpu-avx512", "experts W4A16", "cpu", "avx512_nvfp4_bf16_experts"},
    {"P backends", "cpu-avx512bf16", "experts W4A4", "cpu", "avx512bf16_nvfp4_nvfp4_experts"},
    {"P backends", "sm_90", "experts W4A16", "cpu", "NvFp4 MoE backend 'CPU' $since $d $host"},
    {"P backends", "sm_75", "experts W8A8", "cpu", "FP8 MoE backend CPU $since $d $host"},
    {"P 5", "cpu-avx2", "experts W4A8", "cpu",
     "NvFp4 MoE backend 'CPU' $since $no quantization scheme $W4A8"},
    {"P 5", "cpu-avx2", "experts W4A4-token", "emulation",
     "NvFp4 MoE backend 'REFERENCE' $since $no quantization scheme $W4A4-token"},
    {"U 7, P 5", "sm_90", "experts W8A8-block", "emulation",
     "FP8 MoE backend REFERENCE $since $d $host"},
    {"U 3.5", "cpu-avx512", "experts W8A8 tp=2", "cpu",
     "FP8 MoE backend CPU $since $no parallel config FusedMoEParallelConfig(tp_size=2, "
     "ep_size=1)"},
    {"P backends", "cpu-avx2", "experts W8A8-channel", "emulation", "reference_fp8_experts"},
};

inline const OracleRow kNames[] = {
    {"U 3.4", "sm_90", "experts W4A16", "triton",
     "moe_backend='triton' is not supported. Expected one of $names",
     "ours is said before any scheme is known, so without upstream's 'for NvFp4 MoE'"},
    {"U 3.4", "sm_90", "experts W4A4", "deep_gemm",
     "moe_backend='deep_gemm' is not supported. Expected one of $names"},
    {"U 3.4", "sm_100", "experts W4A4", "aiter",
     "moe_backend='aiter' is not supported. Expected one of $names"},
    {"U 3.4, P backends", "sm_100", "experts W4A4", "flashinfer_moe_ep_cutedsl",
     "moe_backend='flashinfer_moe_ep_cutedsl' is not supported. Expected one of $names",
     "upstream knows it; its role is not among our aliases"},
    {"U 3.1, P backends", "sm_100", "experts W4A4", "VLLM_CUTLASS",
     "moe_backend='VLLM_CUTLASS' is not supported. Expected one of $names",
     "upstream's enum, whose flag is written 'cutlass'"},
    {"U 3.4", "sm_90", "experts W4A16", "",
     "moe_backend='' is not supported. Expected one of $names"},
    {"U 3.4", "sm_121", "experts W4A16", "AUTO", "sm120_nvfp4_bf16_experts"},
};

// ---- What else a kernel must be able to do (U 3.5 words, U 3.6 gates).

inline const OracleRow kActivationRows[] = {
    {"U 3.6", "sm_121", "experts W4A16 swigluoai", "auto", "sm120_nvfp4_bf16_experts",
     "upstream's B12X lacks it; ours de-interleaves at load"},
    {"U 3.6", "sm_121", "experts W4A16 swigluoai_uninterleave", "b12x", "sm120_nvfp4_bf16_experts"},
    {"U 3.5", "sm_121", "experts W4A4 swigluoai_uninterleave", "b12x", "sm120_nvfp4_nvfp4_experts",
     "upstream's B12X takes it with 16-bit activations alone"},
    {"U 3.6", "sm_120", "experts W4A4 relu2_no_mul", "flashinfer_b12x",
     "sm120_nvfp4_nvfp4_experts"},
    {"U 3.6", "sm_90", "experts W4A4 relu2_no_mul", "auto", "sm90_nvfp4_nvfp4_experts"},
    {"U 3.6", "sm_100", "experts W4A4 swigluoai", "cutlass", "sm100_nvfp4_nvfp4_experts"},
    {"U 3.6", "sm_86", "experts W4A16 swigluoai", "marlin", "sm80_nvfp4_bf16_experts"},
    {"U 3.6", "cpu-avx2", "experts W4A4 swigluoai_uninterleave", "auto",
     "avx2_nvfp4_nvfp4_experts"},
    {"U 3.5, U 3.6", "sm_121", "experts W4A16 gelu", "auto",
     "No NvFp4 MoE $none"
     "\n  CUTLASS: $d $cutlass; $no MoEActivation.GELU activation; $no quantization scheme $W4A16"
     "\n  B12X: $no MoEActivation.GELU activation"
     "\n  HOPPER: $d $hopper; $no MoEActivation.GELU activation"
     "\n  MARLIN: $no MoEActivation.GELU activation"
     "\n  CPU: $d $host; $no MoEActivation.GELU activation"
     "\n  REFERENCE: $d $host; $no MoEActivation.GELU activation",
     "upstream's MARLIN has the generic set; ours knows four"},
    {"U 3.5, U 3.6", "sm_90", "experts W4A16 swiglustep", "auto",
     "No NvFp4 MoE $none"
     "\n  CUTLASS: $d $cutlass; $no MoEActivation.SWIGLUSTEP activation; "
     "$no quantization scheme $W4A16"
     "\n  B12X: $d $b12x; $no MoEActivation.SWIGLUSTEP activation"
     "\n  HOPPER: $no MoEActivation.SWIGLUSTEP activation"
     "\n  MARLIN: $no MoEActivation.SWIGLUSTEP activation"
     "\n  CPU: $d $host; $no MoEActivation.SWIGLUSTEP activation"
     "\n  REFERENCE: $d $host; $no MoEActivation.SWIGLUSTEP activation"},
    {"U 3.5, P 5", "cpu-avx2", "experts W4A4 situ", "auto",
     "No NvFp4 MoE $none"
     "\n  CUTLASS: $d $cutlass; $no MoEActivation.SITU activation"
     "\n  B12X: $d $b12x; $no MoEActivation.SITU activation"
     "\n  HOPPER: $d $hopper; $no MoEActivation.SITU activation"
     "\n  MARLIN: $d $marlin; $no MoEActivation.SITU activation"
     "\n  CPU: $no MoEActivation.SITU activation"
     "\n  REFERENCE: $no MoEActivation.SITU activation"},
    {"U 3.5, U 3.6", "sm_100", "experts W4A4 gelu_tanh", "flashinfer_trtllm",
     "NvFp4 MoE backend 'CUTLASS' $since $no MoEActivation.GELU_TANH activation",
     "upstream's TRTLLM has it"},
    {"U 3.5, U 10", "sm_100", "experts W4A4 swiglustep", "flashinfer_cutlass",
     "NvFp4 MoE backend 'CUTLASS' $since $no MoEActivation.SWIGLUSTEP activation",
     "as upstream, whose error then recommends the same backend (flashinfer #3486)"},
    {"U 3.5, U 3.6", "sm_121", "experts W4A4 situ", "b12x",
     "NvFp4 MoE backend 'B12X' $since $no MoEActivation.SITU activation",
     "upstream's B12X has SiTU with betas (4, 25)"},
    {"U 3.5", "cpu-scalar", "experts BF16 gelu", "cpu",
     "BF16 MoE backend 'CPU' $since $no MoEActivation.GELU activation"},
    {"U 3.5", "sm_90", "linear W4A16 gelu", "auto", "sm90_nvfp4_bf16_linear",
     "a linear has no activation function"},
    {"U 3.5", "sm_90", "experts W8A8 situ", "humming",
     "FP8 MoE backend HOPPER $since $no MoEActivation.SITU activation"},
};

inline const OracleRow kParallelRows[] = {
    {"U 3.6", "sm_90", "experts W4A16 tp=2", "auto", "sm90_nvfp4_bf16_experts"},
    {"U 3.6", "sm_121", "experts W4A16 tp=2", "b12x", "sm120_nvfp4_bf16_experts"},
    {"U 3.6", "sm_100", "experts W4A4 tp=4 ep=2", "auto", "sm100_nvfp4_nvfp4_experts"},
    {"U 3.6", "sm_90", "experts W4A4 ep=8", "humming", "sm90_nvfp4_nvfp4_experts"},
    {"U 3.6", "sm_121", "experts W4A16 ep=2", "auto", "sm80_nvfp4_bf16_experts",
     "B12X holds all experts: MARLIN, at the same precision"},
    {"U 3.6", "sm_121", "experts W4A4 ep=2", "auto", "sm80_nvfp4_nvfp4_experts"},
    {"U 3.5, U 3.6", "sm_121", "experts W4A16 ep=2", "b12x",
     "NvFp4 MoE backend 'B12X' $since $no parallel config FusedMoEParallelConfig(tp_size=1, "
     "ep_size=2)",
     "our two numbers of upstream's twelve: what was measured"},
    {"U 3.5, U 3.6", "sm_120", "experts W4A4 tp=2 ep=4", "flashinfer_b12x",
     "NvFp4 MoE backend 'B12X' $since $no parallel config FusedMoEParallelConfig(tp_size=2, "
     "ep_size=4)"},
    {"U 3.5", "cpu-avx512", "experts W4A16 tp=2", "auto",
     "No NvFp4 MoE $none"
     "\n  CUTLASS: $d $cutlass; $no quantization scheme $W4A16"
     "\n  B12X: $d $b12x"
     "\n  HOPPER: $d $hopper"
     "\n  MARLIN: $d $marlin"
     "\n  CPU: $no parallel config FusedMoEParallelConfig(tp_size=2, ep_size=1)"
     "\n  REFERENCE: $no parallel config FusedMoEParallelConfig(tp_size=2, ep_size=1)",
     "a CPU is one process with whole experts"},
    {"U 3.5", "here cpu-avx512bf16", "experts W4A4 ep=4", "auto",
     "No NvFp4 MoE $none"
     "\n  CUTLASS: $d $cutlass"
     "\n  B12X: $d $b12x; $no parallel config FusedMoEParallelConfig(tp_size=1, ep_size=4)"
     "\n  HOPPER: $d $hopper"
     "\n  MARLIN: $d $marlin"
     "\n  CPU: $no parallel config FusedMoEParallelConfig(tp_size=1, ep_size=4)"
     "\n  REFERENCE: $no parallel config FusedMoEParallelConfig(tp_size=1, ep_size=4)"},
    {"U 3.5", "cpu-avx2", "linear W4A16 tp=2", "cpu",
     "NvFp4 linear backend 'CPU' $since $no parallel config FusedMoEParallelConfig(tp_size=2, "
     "ep_size=1)"},
    {"U 11 R10", "sm_90", "experts W4A16 ep=4 E=128", "auto", "sm90_nvfp4_bf16_experts",
     "every rank has as many whole experts"},
    {"U 11 R10", "sm_90", "experts W8A8 tp=2 ep=8 E=64", "humming", "sm90_fp8_experts"},
    {"U 11 R10", "sm_90", "experts BF16 ep=2 E=64", "auto", "sm90_bf16_bf16_experts"},
    {"U 11 R10", "sm_90", "experts W4A16 ep=3 E=128", "humming",
     "NvFp4 MoE backend 'HOPPER' $since $no 128 experts over 3 ranks is not supported: needs a "
     "multiple of 3"},
    {"U 11 R10", "sm_86", "experts W8A16 ep=16 E=8", "marlin",
     "FP8 MoE backend MARLIN $since $no 8 experts over 16 ranks is not supported: needs a multiple "
     "of 16"},
    {"U 11 R10, U 3.5", "sm_100", "experts W4A4 ep=3 E=128", "auto",
     "No NvFp4 MoE $none"
     "\n  CUTLASS: $no 128 experts over 3 ranks is not supported: needs a multiple of 3"
     "\n  B12X: $d $b12x; $no parallel config FusedMoEParallelConfig(tp_size=1, ep_size=3); "
     "$no 128 experts over 3 ranks is not supported: needs a multiple of 3"
     "\n  HOPPER: $d $hopper; $no 128 experts over 3 ranks is not supported: needs a multiple of 3"
     "\n  MARLIN: $no 128 experts over 3 ranks is not supported: needs a multiple of 3"
     "\n  CPU: $d $host; $no parallel config FusedMoEParallelConfig(tp_size=1, ep_size=3); "
     "$no 128 experts over 3 ranks is not supported: needs a multiple of 3"
     "\n  REFERENCE: $d $host; $no parallel config FusedMoEParallelConfig(tp_size=1, ep_size=3); "
     "$no 128 experts over 3 ranks is not supported: needs a multiple of 3"},
    {"U 3.6", "sm_90", "linear W4A16 tp=2 N=4096 out", "auto", "sm90_nvfp4_bf16_linear"},
    {"U 3.6", "sm_90", "linear W8A8 tp=4 in", "auto", "sm90_fp8_linear"},
    {"U 3.6", "sm_121", "linear W4A16 tp=3 N=1000 padded", "b12x", "sm120_nvfp4_bf16_linear",
     "a vocabulary is padded to whole shares"},
    {"U 3.5", "sm_90", "linear BF16 tp=3 N=4096 out", "humming",
     "BF16 linear backend 'HOPPER' $since $no 4096 output dim over 3 ranks is not supported: needs "
     "a multiple of 3"},
    {"U 1.1", "sm_90", "linear W8A8 tp=64 in", "humming",
     "FP8 linear backend HOPPER $since $no 2048 input dim over 64 ranks is not supported: needs a "
     "multiple of 4096",
     "a rank's part of k must keep the kernel's tiles"},
};

inline const OracleRow kShapeRows[] = {
    {"U 9", "sm_121", "experts W4A4 I=48", "b12x", "sm120_nvfp4_nvfp4_experts",
     "I is padded to 64, as upstream's B12X test does with 48"},
    {"U 9", "sm_121", "experts W4A16 I=48", "b12x", "sm120_nvfp4_bf16_experts"},
    {"U 9", "sm_100", "experts W4A4 I=80", "cutlass", "sm100_nvfp4_nvfp4_experts",
     "upstream refuses gated padding; zeros change no result"},
    {"U 9", "sm_90", "experts W4A16 H=64 I=16", "auto", "sm90_nvfp4_bf16_experts"},
    {"U 3.5", "sm_90", "experts W4A16 H=0 I=0", "auto", "sm90_nvfp4_bf16_experts",
     "0: not known, any"},
    {"U 1.2", "cpu-avx2", "experts W4A16 H=96", "auto", "avx2_nvfp4_bf16_experts"},
    {"U 3.5", "sm_90", "experts W4A16 H=96", "auto",
     "No NvFp4 MoE $none"
     "\n  CUTLASS: $d $cutlass; $no quantization scheme $W4A16; "
     "$no 96 hidden dim is not supported: needs a multiple of 64"
     "\n  B12X: $d $b12x; $no 96 hidden dim is not supported: needs a multiple of 64"
     "\n  HOPPER: $no 96 hidden dim is not supported: needs a multiple of 64"
     "\n  MARLIN: $no 96 hidden dim is not supported: needs a multiple of 64"
     "\n  CPU: $d $host"
     "\n  REFERENCE: $d $host",
     "upstream's Marlin asserts H % 64 while loading (U 5.4); here the plan knows"},
    {"U 3.5", "sm_100", "experts W4A4 I=24", "auto",
     "No NvFp4 MoE $none"
     "\n  CUTLASS: $no 24 intermediate dim over 1 ranks is not supported: needs a multiple of 16"
     "\n  B12X: $d $b12x; $no 24 intermediate dim over 1 ranks is not supported: needs a multiple "
     "of 16"
     "\n  HOPPER: $d $hopper; $no 24 intermediate dim over 1 ranks is not supported: needs a "
     "multiple of 16"
     "\n  MARLIN: $no 24 intermediate dim over 1 ranks is not supported: needs a multiple of 16"
     "\n  CPU: $d $host; $no 24 intermediate dim over 1 ranks is not supported: needs a multiple "
     "of 16"
     "\n  REFERENCE: $d $host; $no 24 intermediate dim over 1 ranks is not supported: needs a "
     "multiple of 16"},
    {"U 3.5, U 1.1", "sm_121", "experts W4A16 H=2080", "b12x",
     "NvFp4 MoE backend 'B12X' $since $no 2080 hidden dim is not supported: needs a multiple of "
     "64"},
    {"U 3.5, U 1.1", "cpu-avx512", "experts W4A16 H=40", "cpu",
     "NvFp4 MoE backend 'CPU' $since $no 40 hidden dim is not supported: needs a multiple of 16"},
    {"U 1.2", "cpu-scalar", "linear W4A16 H=24", "cpu",
     "NvFp4 linear backend 'CPU' $since $no 24 hidden dim is not supported: needs a multiple of "
     "16"},
    {"U 1.1", "sm_90", "experts W4A16 tp=5", "humming",
     "NvFp4 MoE backend 'HOPPER' $since $no 768 intermediate dim over 5 ranks is not supported: "
     "needs a multiple of 80",
     "a rank's slice of I must keep whole scale groups"},
    {"U 1.1", "sm_90", "experts W4A16 tp=3", "humming", "sm90_nvfp4_bf16_experts"},
    {"U 1.1", "sm_90", "experts W4A16 tp=32", "humming",
     "NvFp4 MoE backend 'HOPPER' $since $no 768 intermediate dim over 32 ranks is not supported: "
     "needs a multiple of 512"},
};

inline const OracleRow kBiasRows[] = {
    {"U 3.5", "sm_90", "experts W4A16 bias", "auto", "sm90_nvfp4_bf16_experts"},
    {"U 3.5", "sm_100", "experts W4A4 bias", "auto", "sm100_nvfp4_nvfp4_experts"},
    {"U 3.5", "sm_121", "experts W4A16 bias", "auto", "sm80_nvfp4_bf16_experts",
     "B12X takes no bias: MARLIN, at the same precision"},
    {"U 3.5", "sm_121", "experts W4A16 bias", "b12x",
     "NvFp4 MoE backend 'B12X' $since $no expert biases"},
    {"U 3.5", "sm_120", "experts W4A4 bias", "flashinfer_b12x",
     "NvFp4 MoE backend 'B12X' $since $no expert biases"},
    {"U 3.5", "cpu-avx2", "experts W4A16 bias", "cpu",
     "NvFp4 MoE backend 'CPU' $since $no expert biases"},
    {"U 3.5", "cpu-avx2", "experts W4A4 bias", "emulation",
     "NvFp4 MoE backend 'REFERENCE' $since $no expert biases", "as upstream's EMULATION"},
    {"P 5", "sm_121", "linear W4A16 bias", "auto",
     "No NvFp4 linear $none"
     "\n  CUTLASS: $d $cutlass; $no quantization scheme $W4A16; $no bias"
     "\n  B12X: $no bias"
     "\n  HOPPER: $d $hopper; $no bias"
     "\n  MARLIN: $no bias"
     "\n  CPU: $d $host; $no bias"
     "\n  REFERENCE: $d $host; $no bias"},
    {"P 5", "sm_90", "linear BF16 bias", "humming", "BF16 linear backend 'HOPPER' $since $no bias"},
};

inline const OracleRow kRouterRows[] = {
    {"U 3.6, U 6", "sm_121", "experts W4A16 router k=1", "auto", "sm120_nvfp4_bf16_experts"},
    {"U 3.6, U 6", "sm_121", "experts W4A4 router k=1", "auto", "sm80_nvfp4_nvfp4_experts",
     "B12X multiplies the input in W4A16 alone: MARLIN"},
    {"U 3.6, U 6", "sm_121", "experts W4A4 router k=1", "b12x",
     "NvFp4 MoE backend 'B12X' $since $no router weight on input"},
    {"U 6", "sm_100", "experts W4A4 router k=1", "cutlass", "sm100_nvfp4_nvfp4_experts"},
    {"U 6", "sm_90", "experts W4A16 router", "humming",
     "NvFp4 MoE backend 'HOPPER' $since $no router weight on input with top-k 8: needs top-k 1"},
    {"U 6", "cpu-avx2", "experts W4A16 router k=1", "cpu",
     "NvFp4 MoE backend 'CPU' $since $no router weight on input"},
    {"U 6", "sm_80", "experts W4A16 router", "auto",
     "No NvFp4 MoE $none"
     "\n  CUTLASS: $d $cutlass; $no quantization scheme $W4A16; $no router weight on input with "
     "top-k 8: needs top-k 1"
     "\n  B12X: $d $b12x; $no router weight on input with top-k 8: needs top-k 1"
     "\n  HOPPER: $d $hopper; $no router weight on input with top-k 8: needs top-k 1"
     "\n  MARLIN: $no router weight on input with top-k 8: needs top-k 1"
     "\n  CPU: $d $host; $no router weight on input"
     "\n  REFERENCE: $d $host; $no router weight on input"},
    {"U 3.5, U 11 R6", "here sm_90", "experts W8A8 gelu tp=7 ep=2 H=100 bias router", "b12x",
     "~$d $b12x; $no MoEActivation.GELU activation; $no quantization scheme $W8A8; $no parallel "
     "config FusedMoEParallelConfig(tp_size=7, ep_size=2); $no 100 hidden dim is not supported: "
     "needs a multiple of 64; $no expert biases; $no router weight on input with top-k 8: needs "
     "top-k 1",
     "every failed gate, in U 3.5's order (upstream stops at the first)"},
};

}  // namespace nibble::plan
