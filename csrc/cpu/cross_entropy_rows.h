// Declares the hot loop of cross-entropy (cross_entropy_kernel.cpp), which is compiled once per instruction set.
#pragma once

#include "pycooldown/cross_entropy.h"

namespace pycooldown {

// Computes rows [begin, end) of the job, without the sums by domain, and sets correct[row].
using CrossEntropyRows = void(const CrossEntropy& job, std::int64_t begin, std::int64_t end, bool* correct);

namespace baseline {
CrossEntropyRows cross_entropy_rows;
}
namespace avx2 {
CrossEntropyRows cross_entropy_rows;
}
namespace avx512 {
CrossEntropyRows cross_entropy_rows;
}

}  // namespace pycooldown
