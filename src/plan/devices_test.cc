#include "plan/devices.h"

#include <gtest/gtest.h>

namespace nibble::plan {
namespace {

DeviceInfo Here(CpuIsa isa) {
  DeviceInfo here;
  here.model = "a CPU";
  here.isa = isa;
  here.cores = 4;
  here.present = true;
  return here;
}

TEST(Devices, ALowerInstructionSetOfThisMachineIsHere) {
  for (const char* name : {"cpu-avx512", "cpu-avx2", "CPU_scalar", "cpu"}) {
    const auto device = FindPresentDevice(name, Here(CpuIsa::kAvx512));
    ASSERT_TRUE(device.ok()) << name << ": " << device.error().Message();
    EXPECT_TRUE(device->present);
    EXPECT_EQ(device->cores, 4);
    EXPECT_EQ(device->model, "a CPU");
  }
  EXPECT_EQ(FindPresentDevice("cpu-avx2", Here(CpuIsa::kAvx512))->isa, CpuIsa::kAvx2);
  EXPECT_EQ(FindPresentDevice("cpu", Here(CpuIsa::kAvx512))->isa, CpuIsa::kAvx512);
}

TEST(Devices, WhatIsNotHereIsRefusedAndSaysWhatIs) {
  for (const char* name : {"cpu-avx512bf16", "sm_90", "sm_121", "12.1"}) {
    const auto device = FindPresentDevice(name, Here(CpuIsa::kAvx512));
    ASSERT_FALSE(device.ok()) << name;
    EXPECT_EQ(device.error().code, ErrorCode::kDevice);
    EXPECT_NE(device.error().what.find("is not in this machine, which has cpu: a CPU, avx512"),
              std::string::npos)
        << device.error().what;
    EXPECT_NE(device.error().hint.find("nothing can run there"), std::string::npos);
  }
  EXPECT_EQ(FindPresentDevice("sm_42", Here(CpuIsa::kAvx512)).error().code,
            ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace nibble::plan
