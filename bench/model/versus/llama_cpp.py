"""llama.cpp, pinned, from PyPI: its sources, its builds, its files of other quantizations, and the driver that runs them."""
import glob
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile

PACKAGE, SHA256 = "llama-cpp-python==0.3.36", "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
VERSION = "llama.cpp 0c1e57098 (llama-cpp-python 0.3.36)"
COMMON = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_OPENMP=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF",
          "-DLLAMA_BUILD_SERVER=OFF"]
NATIVE = ["-DGGML_NATIVE=ON"]
AVX2 = ["-DGGML_NATIVE=OFF", "-DGGML_AVX2=ON", "-DGGML_FMA=ON", "-DGGML_F16C=ON", "-DGGML_BMI2=ON"]
# How llama-quantize makes each type of a bf16 file, lm_head and embedding staying bf16 as in the checkpoint.
QUANTIZE = {"q4_0": (["--pure"], "Q4_0"), "q4_k_m": ([], "Q4_K_M"), "mxfp4": (["--tensor-type", "attn_.*=mxfp4"], "MXFP4_MOE")}


def log(text):
    print(text, file=sys.stderr, flush=True)


def fetch(sources, work):
    """Puts llama.cpp's sources at `sources`, unless something is there."""
    if os.path.exists(os.path.join(sources, "CMakeLists.txt")):
        return
    log(f"fetching {PACKAGE}")
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", work, PACKAGE], check=True)
    (archive,) = glob.glob(os.path.join(work, "llama_cpp_python-*.tar.gz"))
    with open(archive, "rb") as file:
        found = hashlib.sha256(file.read()).hexdigest()
    if found != SHA256:
        raise ValueError(f"{archive}: sha256 {found}, expected {SHA256}")
    unpacked = os.path.join(work, "sdist")
    with tarfile.open(archive) as tar:
        tar.extractall(unpacked, filter="data")
    (vendored,) = glob.glob(os.path.join(unpacked, "*", "vendor", "llama.cpp"))
    shutil.move(vendored, sources)
    shutil.rmtree(unpacked)


class LlamaCpp:
    """One build of it. `name` keeps builds apart: native, avx2."""

    def __init__(self, sources, work, name):
        self.name, self.work = name, work
        self.tools = os.path.join(sources, "build" if name == "native" else f"build-{name}")
        fetch(sources, work)
        self._build(sources)
        self.driver = os.path.join(work, f"llama_driver-{name}")
        self._compile(sources)

    def _build(self, sources):
        wanted = ["llama", "llama-quantize"] if self.name == "native" else ["llama"]
        if not os.path.exists(os.path.join(self.tools, "CMakeCache.txt")):
            flags = NATIVE if self.name == "native" else AVX2
            subprocess.run(["cmake", "-S", sources, "-B", self.tools, "-G", "Ninja", *COMMON, *flags], check=True, stdout=sys.stderr)
        if not all(glob.glob(os.path.join(self.tools, "bin", f"*{target}*")) for target in wanted):
            log(f"building llama.cpp ({self.name}); some minutes")
            subprocess.run(["nice", "cmake", "--build", self.tools, "--target", *wanted], check=True, stdout=sys.stderr)

    def _compile(self, sources):
        source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "llama_driver.cc")
        if os.path.exists(self.driver) and os.path.getmtime(self.driver) > os.path.getmtime(source):
            return
        libraries = os.path.join(os.path.abspath(self.tools), "bin")
        subprocess.run(
            ["g++", "-std=c++20", "-O2", source, "-o", self.driver, "-I", os.path.join(sources, "include"), "-I",
             os.path.join(sources, "ggml", "include"), "-L", libraries, "-lllama", "-lggml", "-lggml-cpu", "-lggml-base",
             f"-Wl,-rpath,{libraries}"], check=True)

    def quantize(self, source, to, kind):
        flags, name = QUANTIZE[kind]
        keep = ["--output-tensor-type", "bf16", "--token-embedding-type", "bf16"]
        subprocess.run([os.path.join(self.tools, "bin", "llama-quantize"), *keep, *flags, source, to + ".part", name], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.rename(to + ".part", to)

    def time(self, file, prompt, generated, threads, repetitions):
        """{"samples_ns", "samples_cpu_ns"}"""
        command = [self.driver, "time", file, str(threads), str(prompt), str(generated), str(repetitions)]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

    def logits(self, file, prompts, threads, out):
        """Writes float32 [prompts, V], of each prompt's last position."""
        text = "".join(",".join(map(str, ids)) + "\n" for ids in prompts)
        subprocess.run([self.driver, "logits", file, str(threads), out + ".part"], input=text.encode(), check=True)
        os.rename(out + ".part", out)
