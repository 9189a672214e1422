// The bindings of token streams, which read and fill NumPy arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <limits>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "arrays.h"
#include "file.h"
#include "integers.h"
#include "pycooldown/mapped_file.h"
#include "pycooldown/token_reader.h"

namespace py = pybind11;
using namespace py::literals;

namespace pycooldown {

namespace {

// Maps a whole file into memory, read-only. The file does not stay open.
py::array map_file(const std::string& path, UInt64<"size"> size) {
  const File file(path);
  if (const File::Status status = file.status(); !status.regular || status.size != size)
    file.fail(ESTALE, " is no longer a file of " + std::to_string(size) + " bytes");
  void* data = nullptr;
  if (size) {
    data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.descriptor(), 0);
    if (data == MAP_FAILED)
      file.fail(errno, errno == ENOMEM ? " cannot be mapped; see the limit vm.max_map_count" : "");
  }
  struct Map {
    void* data;
    std::uint64_t size;
    ~Map() {
      if (size) ::munmap(data, size);
    }
  };
  const py::capsule owner(new Map{data, size}, [](void* map) { delete static_cast<Map*>(map); });
  py::array bytes(py::dtype::of<std::uint8_t>(), {static_cast<py::ssize_t>(size)}, {py::ssize_t{1}}, data, owner);
  bytes.attr("flags").attr("writeable") = false;
  return bytes;
}

// Ascending numbers at the end of a file, uint64, little endian. The file is mapped; reading pages that it has lost is
// an error.
class MappedNumbers {
  template <class Read>
  auto guarded(const Read& read) {
    MapGuard guard;
    MappedBytes* const map = file_.mapped();
    guard.watch({&map, 1});
    const auto result = read();
    if (map->lost)
      throw std::system_error(EIO, std::generic_category(),
                              path_ + " was truncated while it was mapped, or its disk fails");
    return result;
  }

 public:
  MappedNumbers(std::string path, UInt64<"size"> size, UInt64<"offset"> offset) : path_(std::move(path)), file_(path_) {
    if (file_.size() != size)
      throw std::system_error(ESTALE, std::generic_category(),
                              path_ + " is no longer a file of " + std::to_string(size) + " bytes");
    if (offset > size || offset % 8 || size % 8) throw std::invalid_argument(path_ + " does not hold whole numbers");
    numbers_ = {reinterpret_cast<const std::uint64_t*>(file_.data() + offset), (size - offset) / 8};
  }

  std::size_t size() const { return numbers_.size(); }

  // Number of entries that are at most `value`.
  std::size_t count_up_to(UInt64<"value"> value) {
    return guarded([&] { return std::ranges::upper_bound(numbers_, value.value) - numbers_.begin(); });
  }

  py::array_t<std::uint64_t> copy(UInt64<"begin"> begin, UInt64<"end"> end) {
    if (begin > end || end > size())
      throw py::index_error("numbers " + std::to_string(begin) + " to " + std::to_string(end) + " of " +
                            std::to_string(size()));
    return guarded(
        [&] { return py::array_t<std::uint64_t>(static_cast<py::ssize_t>(end - begin), numbers_.data() + begin); });
  }

 private:
  std::string path_;
  MappedFile file_;
  std::span<const std::uint64_t> numbers_;
};

TokenType type_of(const std::string& dtype) {
  static const std::vector<std::pair<std::string, TokenType>> types = {
      {"uint8", TokenType::u8},   {"int8", TokenType::i8},   {"uint16", TokenType::u16}, {"int16", TokenType::i16},
      {"uint32", TokenType::u32}, {"int32", TokenType::i32}, {"int64", TokenType::i64}};
  for (const auto& [name, type] : types)
    if (name == dtype) return type;
  throw std::invalid_argument("tokens cannot be of dtype " + dtype);
}

// A TokenReader with the arrays that it reads from.
class PyTokenReader {
 public:
  void add(const std::string& path, Input<std::uint8_t> bytes, const std::string& dtype,
           std::optional<UInt64<"vocabulary_size">> vocabulary_size, Input<std::uint64_t> block_offsets,
           Input<std::uint64_t> block_ends, Input<std::uint64_t> ends, const std::optional<std::string>& ends_path) {
    const auto blocks = view(block_ends);
    reader_.add({path, ends_path.value_or(""), std::as_bytes(view(bytes)), type_of(dtype),
                 blocks.empty() ? 0 : blocks.back(),
                 vocabulary_size ? vocabulary_size->value : std::numeric_limits<std::uint64_t>::max(),
                 view(block_offsets), blocks, view(ends)});
    kept_.push_back({std::move(bytes), std::move(block_offsets), std::move(block_ends), std::move(ends)});
  }

  std::int64_t size() const { return reader_.size(); }

  void fill(const Input<std::int64_t>& pieces, const Input<std::int64_t>& begins, const Input<std::int64_t>& limits,
            bool whole_documents, bool across_documents, Int64<"pad_id"> pad_id, py::array ids,
            std::optional<py::array> positions, std::optional<py::array> segments, std::optional<py::array> labels,
            std::optional<py::array> shift_labels) const {
    TokenRows rows{};
    rows.pieces = view(pieces), rows.begins = view(begins), rows.limits = view(limits);
    rows.whole_documents = whole_documents;
    rows.across_documents = across_documents;
    rows.pad_id = pad_id;
    rows.wide = ids.itemsize() == 8;
    rows.length = ids.ndim() == 2 ? ids.shape(1) : 0;
    const auto output = [&](py::array& array, bool wide) {
      if (array.ndim() != 2 || array.shape(0) + 1 != pieces.size() || array.shape(1) != rows.length ||
          array.dtype().kind() != 'i' || array.itemsize() != (wide ? 8 : 4) || !(array.flags() & py::array::c_style))
        throw std::invalid_argument("arrays to fill must be contiguous, of int64 or int32, one row for each of pieces");
      return array.mutable_data();
    };
    rows.ids = output(ids, rows.wide);
    if (positions) rows.positions = static_cast<std::int32_t*>(output(*positions, false));
    if (segments) rows.segments = static_cast<std::int32_t*>(output(*segments, false));
    if (labels) rows.labels = output(*labels, rows.wide);
    if (shift_labels) rows.shift_labels = output(*shift_labels, rows.wide);
    bool ascend = begins.size() == limits.size() && rows.pieces.front() == 0 && rows.pieces.back() == begins.size();
    for (std::size_t row = 0; row + 1 < rows.pieces.size(); ++row)
      ascend = ascend && rows.pieces[row] <= rows.pieces[row + 1];
    if (!ascend) throw std::invalid_argument("pieces must ascend from 0 to their number");
    const py::gil_scoped_release released;
    reader_.fill(rows);
  }

 private:
  TokenReader reader_;
  std::vector<std::array<py::array, 4>> kept_;
};

}  // namespace

void register_tokens(py::module_& m) {
  m.def("map_file", &map_file, "path"_a, "size"_a, "Map a file into memory and return its bytes.");
  py::class_<MappedNumbers>(m, "MappedNumbers")
      .def(py::init<std::string, UInt64<"size">, UInt64<"offset">>(), "path"_a, "size"_a, "offset"_a)
      .def("__len__", &MappedNumbers::size)
      .def("count_up_to", &MappedNumbers::count_up_to, "value"_a)
      .def("copy", &MappedNumbers::copy, "begin"_a, "end"_a);
  py::class_<PyTokenReader>(m, "TokenReader")
      .def(py::init<>())
      .def("add", &PyTokenReader::add, "path"_a, py::kw_only(), "bytes"_a, "dtype"_a, "vocabulary_size"_a,
           "block_offsets"_a, "block_ends"_a, "ends"_a, "ends_path"_a)
      .def("__len__", &PyTokenReader::size)
      .def("fill", &PyTokenReader::fill, py::kw_only(), "pieces"_a, "begins"_a, "limits"_a, "whole_documents"_a,
           "across_documents"_a, "pad_id"_a, "input_ids"_a, "position_ids"_a, "segment_ids"_a, "labels"_a,
           "shift_labels"_a);
}

}  // namespace pycooldown
