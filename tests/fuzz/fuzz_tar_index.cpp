// Feeds damaged tars and index files to the scanner and the index reader: nothing may be read out of bounds, and what
// is found must lie within the shard. With clang: -fsanitize=fuzzer,address,undefined -DPYCOOLDOWN_LIBFUZZER. Without
// it, main() mutates the files named on the command line for a number of seconds, and leaves the input that breaks
// something in crash.tar, which then belongs into tests/fuzz/corpus.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "pycooldown/tar_index.h"

namespace {

using namespace pycooldown;

std::string_view tested;  // the input that is being tried

void keep_tested() { std::ofstream("crash.tar", std::ios::binary).write(tested.data(), std::ssize(tested)); }

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

void check(const TarIndex& index) {
  require(index.samples.back().member == index.members.size(), "the last row does not end the members");
  require(index.samples.back().key == index.keys.size(), "the last row does not end the keys");
  for (std::size_t i = 0; i < index.size(); ++i) require(!index.key(i).empty(), "an empty key");
  for (const TarMember& member : index.members)
    require(member.offset() <= index.shard_size && member.size <= index.shard_size - member.offset(),
            "out of the shard");
}

void test(std::string_view input) {
  tested = input;
  const ReadAt read = [&](std::uint64_t offset, char* out, std::size_t size) {
    require(offset <= input.size(), "a read behind the end");
    const std::size_t count = std::min<std::size_t>(size, input.size() - offset);
    if (count > 0) std::memcpy(out, input.data() + offset, count);
    return count;
  };
  const TarIndex index = scan_tar(read, input.size());
  check(index);
  const auto again = index_from_bytes(index_to_bytes(index), input.size(), 0);
  require(again && again->keys == index.keys && again->faults.size() == index.faults.size(),
          "an index changed on disk");
  const auto count = samples_in_index(index_to_bytes(index), input.size(), 0);
  require(count.has_value() == index.faults.empty() && count.value_or(index.size()) == index.size(),
          "the head of an index counts other samples");
  try {
    if (const auto damaged = index_from_bytes(input, 1 << 20, 0)) check(*damaged);
  } catch (const std::invalid_argument&) {  // which is how damage is to be reported
  }
}

// The checksum of index files (tar_index_former.cpp), so that crafted ones get past it.
void seal(std::string& bytes) {
  constexpr std::size_t kHeader = 64;
  if (bytes.size() < kHeader) return;
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (std::size_t at = kHeader; at < bytes.size(); at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data() + at, std::min<std::size_t>(8, bytes.size() - at));
    hash = (hash ^ word) * 0x100000001b3u;
    hash ^= hash >> 32;
  }
  std::memcpy(bytes.data() + kHeader - 8, &hash, 8);
}

// Reads an index whose rows, counts and texts are damaged but whose checksum is right, and then all that it lists.
void test_index(std::string bytes, std::uint64_t shard_size, std::mt19937_64& rng) {
  for (std::size_t edits = 1 + rng() % 4; edits > 0; --edits) {
    const std::size_t at = rng() % bytes.size();
    switch (rng() % 4) {
      case 0:
        bytes[at] = static_cast<char>(rng());
        break;
      case 1:
        bytes[at] = static_cast<char>(bytes[at] ^ 1 << rng() % 8);
        break;
      case 2:
        std::memset(bytes.data() + at, rng() % 2 ? 0xff : 0, std::min<std::size_t>(8, bytes.size() - at));
        break;
      case 3:
        bytes.resize(std::max<std::size_t>(at, 1));
        break;
    }
  }
  seal(bytes);
  tested = bytes;
  try {
    samples_in_index(bytes, shard_size, 0);
    const auto index = index_from_bytes(bytes, shard_size, 0);
    if (!index) return;
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < index->size(); ++i) {
      for (char c : index->key(i)) sum += static_cast<unsigned char>(c);
      for (std::uint64_t m = index->samples[i].member; m < index->samples[i + 1].member; ++m) {
        const TarMember& member = index->members[m];
        sum += index->extensions[member.extension].size();
        require(member.offset() <= shard_size && member.size <= shard_size - member.offset(), "out of the shard");
      }
    }
    if (sum == 1) std::puts("");            // so that nothing above is optimised away
  } catch (const std::invalid_argument&) {  // which is how damage is to be reported
  }
}

}  // namespace

#if defined(PYCOOLDOWN_LIBFUZZER)
extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  test({reinterpret_cast<const char*>(data), size});
  return 0;
}
#else
extern "C" void __sanitizer_set_death_callback(void (*callback)());

int main(int argc, char** argv) {
  __sanitizer_set_death_callback(keep_tested);
  std::signal(SIGABRT, [](int) { keep_tested(); });
  if (argc < 3) return std::fprintf(stderr, "usage: %s seconds file...\n", argv[0]), 2;
  std::vector<std::string> corpus;
  for (int i = 2; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    test(corpus.back());
  }
  std::mt19937_64 rng(1);
  const auto below = [&](std::size_t n) { return n == 0 ? 0 : static_cast<std::size_t>(rng() % n); };
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(argv[1]));
  long runs = 0;
  for (; std::chrono::steady_clock::now() < end; ++runs) {
    std::string input = corpus[below(corpus.size())];
    for (std::size_t edits = 1 + below(6); edits > 0 && !input.empty(); --edits) {
      const std::size_t at = below(input.size());
      const std::string& other = corpus[below(corpus.size())];
      switch (below(6)) {
        case 0:
          input[at] = static_cast<char>(rng());
          break;
        case 1:
          input[at] = static_cast<char>(input[at] ^ 1 << below(8));
          break;
        case 2:
          input.resize(at);
          break;
        case 3:
          input.insert(at / 512 * 512, other.substr(below(other.size()) / 512 * 512, 512 * (1 + below(3))));
          break;
        case 4:
          input.replace(at, std::min<std::size_t>(8, input.size() - at),
                        std::string(8,
                                    "\0\xff\x80"
                                    "7"[below(4)]));
          break;
        case 5:
          std::swap(input[at], input[below(input.size())]);
          break;
      }
    }
    // A right checksum lets most damage through to the code behind it.
    for (std::size_t at = 0; at + 512 <= input.size() && below(4) != 0; at += 512) {
      if (input.compare(at + 257, 5, "ustar") != 0) continue;
      std::fill_n(input.begin() + static_cast<std::ptrdiff_t>(at) + 148, 8, ' ');
      unsigned sum = 0;
      for (std::size_t i = 0; i < 512; ++i) sum += static_cast<unsigned char>(input[at + i]);
      std::snprintf(input.data() + at + 148, 8, "%06o", sum);
      input[at + 155] = ' ';
    }
    test(input);
    const ReadAt read = [&](std::uint64_t offset, char* out, std::size_t size) {
      return input.copy(out, size, offset);
    };
    test_index(index_to_bytes(scan_tar(read, input.size())), input.size(), rng);
  }
  std::printf("%ld inputs, nothing broken\n", runs);
}
#endif
