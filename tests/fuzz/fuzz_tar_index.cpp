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
#include "pycooldown/tar_index_writer.h"
#include "tar_index_file.h"

namespace {

using namespace pycooldown;

std::string_view tested;  // the input that is being tried

void keep_tested() { std::ofstream("crash.tar", std::ios::binary).write(tested.data(), std::ssize(tested)); }

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

// Looks up all that an index lists; what it says lies within the shards, or it is damaged, which is an exception.
void look_up(const TarIndex& index) {
  std::uint64_t sum = 0;
  TarSample sample;
  for (std::uint32_t shard = 0; shard < index.num_shards(); ++shard) {
    sum += index.path(shard).size() + index.version(shard).size();
    const auto& extensions = index.extensions(index.table(shard));
    const ReadAt read = [&](std::uint64_t offset, char* out, std::size_t size) {
      require(offset <= index.shard_size(shard) && size <= index.shard_size(shard) - offset, "a read out of the shard");
      std::memset(out, 1, size);
      return size;
    };
    for (std::uint64_t i = 0; i < std::min<std::uint64_t>(index.num_samples(shard), 10'000); ++i) {
      try {
        index.prefetch_place(shard, i);
        index.prefetch_record(shard, i);
        index.first_offset(shard, i);
        index.get(shard, i, sample);
      } catch (const std::invalid_argument&) {
        continue;
      }
      for (char c : sample.key) sum += static_cast<unsigned char>(c);
      for (const TarMember& member : sample.members) {
        sum += extensions[member.extension].size();
        require(member.offset <= index.shard_size(shard) && member.size <= index.shard_size(shard) - member.offset,
                "out of the shard");
      }
    }
    try {
      index.verify(shard);
      index.fingerprint(shard, read);
    } catch (const std::invalid_argument&) {
    }
  }
  for (std::uint32_t d = 0; d < index.num_domains(); ++d)
    require(index.first_shard(d) <= index.first_shard(d + 1) && index.first_shard(d + 1) <= index.num_shards(),
            "a domain out of the shards");
  for (std::uint32_t f = 0; f < index.num_faults(); ++f) sum += index.fault(f).second.what.size();
  if (sum == 1) std::puts("");  // so that nothing above is optimised away
}

void test(std::string_view input) {
  tested = input;
  const ReadAt read = [&](std::uint64_t offset, char* out, std::size_t size) {
    require(offset <= input.size(), "a read behind the end");
    const std::size_t count = std::min<std::size_t>(size, input.size() - offset);
    if (count > 0) std::memcpy(out, input.data() + offset, count);
    return count;
  };
  const auto index = scan_tar(read, input.size(), 0);
  index->verify(0);
  require(index->has_fingerprint(0, read), "a shard without its own fingerprint");
  TarSample sample;
  for (std::uint64_t i = 0; i < index->num_samples(); ++i) {
    index->get(0, i, sample);
    require(!sample.key.empty(), "an empty key");
  }
  look_up(*index);
  const std::string bytes(index->bytes());
  const auto again = index_of_shard(bytes, input.size(), 0);
  require(again && again->bytes() == bytes, "an index changed on disk");
  const auto count = samples_in_index(bytes, input.size(), 0);
  require(
      count.has_value() == (index->num_faults() == 0) && count.value_or(index->num_samples()) == index->num_samples(),
      "the head of an index counts other samples");
  try {
    if (const auto damaged = index_of_shard(std::string(input), 1 << 20, 0)) look_up(*damaged);
  } catch (const std::invalid_argument&) {  // which is how damage is to be reported
  }
}

// Gives a crafted file the right checksums of its header and its directory.
void seal(std::string& bytes) {
  using namespace index_file;
  if (bytes.size() < sizeof(Header)) return;
  auto header = load<Header>(bytes.data());
  if (header.directory > bytes.size()) return;
  header.directory_size = bytes.size() - header.directory;
  header.directory_checksum = checksum(std::string_view(bytes).substr(header.directory));
  header.checksum = checksum({reinterpret_cast<const char*>(&header), sizeof header - 8});
  std::memcpy(bytes.data(), &header, sizeof header);
}

// An index of several shards and domains.
std::string combined(const std::vector<std::string>& shards) {
  TarIndexWriter writer;
  std::string sections;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    if (i % 3 == 0) writer.begin_domain("domain" + std::to_string(i));
    const ReadAt read = [&](std::uint64_t offset, char* out, std::size_t size) {
      return shards[i].substr(offset, size).copy(out, size);
    };
    sections += writer.add(*scan_tar(read, shards[i].size(), 0), 0, "shard" + std::to_string(i), i % 2 ? "etag" : "");
  }
  const auto [directory, header] = writer.finish();
  return header + sections + directory;
}

// Reads an index whose rows, counts, records and texts are damaged but whose checksums are right, and all it lists.
void test_index(std::string bytes, std::mt19937_64& rng) {
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
  if (rng() % 8 != 0) seal(bytes);
  tested = bytes;
  try {
    samples_in_index(bytes, 1 << 20, 0);
    if (const auto index = TarIndex::parse(bytes)) look_up(*index);
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
    test_index(combined({input}), rng);
    if (below(8) == 0) test_index(combined({input, corpus[below(corpus.size())], corpus[0], corpus[1]}), rng);
  }
  std::printf("%ld inputs, nothing broken\n", runs);
}
#endif
