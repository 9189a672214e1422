// The bindings of the tar reader. Building samples is the hot path, so it uses CPython directly.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "arrays.h"
#include "integers.h"
#include "pycooldown/block_maps.h"
#include "pycooldown/tar_index.h"
#include "pycooldown/tar_reader.h"
#include "sample_objects.h"

namespace py = pybind11;
using namespace py::literals;

namespace pycooldown {

namespace {

using Index = std::shared_ptr<TarIndex>;

// Bytes of an object with a buffer.
struct Content {
  explicit Content(PyObject* object) {
    if (PyObject_GetBuffer(object, &buffer, PyBUF_SIMPLE) != 0) throw py::error_already_set();
  }
  ~Content() { PyBuffer_Release(&buffer); }
  Content(const Content&) = delete;
  Content& operator=(const Content&) = delete;

  Py_buffer buffer;
};

// TarReader with the Python strings that its samples share. Building samples is the hot path, so it uses CPython
// directly.
class PyTarReader {
 public:
  explicit PyTarReader(UInt64<"max_maps"> max_maps) : reader_(max_maps) {}

  void add(const std::string& path, const py::str& domain, Index index) {
    objects_.add(*index, {objects_.common_of(domain)});
    reader_.add(path, std::move(index));
  }

  void add_all(const Index& index, const std::string& folder) {
    index->guarded([&] {
      std::vector<py::dict> common;
      for (std::uint32_t d = 0; d < index->num_domains(); ++d)
        common.insert(common.end(), index->first_shard(d + 1) - index->first_shard(d),
                      objects_.common_of(py::str(decode(index->domain(d)))));
      objects_.add(*index, common);
      reader_.add_all(index, folder);
      return true;
    });
  }

  std::uint64_t size() const { return reader_.size(); }

  py::list getitems(const py::object& indices) {
    const auto places = find(indices);
    TarReader::Batch batch(reader_);
    TarSample sample;  // a local variable, because other threads may use this reader too
    py::list out(places.size());
    for (std::size_t i = 0; i < places.size(); ++i) {
      prefetch(places, i);
      reader_.get(places[i], sample);
      const py::object made = objects_.start(reader_, places[i].shard, sample.key);
      // Viewed only now: making a dictionary may run the garbage collector and so other threads, which may unmap the
      // shard; making bytes and setting items never does.
      if (const auto [begin, end] = extent(sample.members); !sample.members.empty())
        objects_.fill(made, places[i].shard, sample.members, batch.view(places[i].shard, begin, end - begin), begin,
                      [&](const char* from, std::size_t size, void* to) { batch.copy(from, size, to); });
      PyList_SET_ITEM(out.ptr(), static_cast<Py_ssize_t>(i), made.inc_ref().ptr());
    }
    batch.finish();
    return out;
  }

  // Positions of the bytes of samples, or of one member of each.
  Located locate(const py::object& indices, const std::optional<std::string>& extension) {
    Located out;
    out.places = find(indices);
    out.keys.reserve(out.places.size());
    out.members.reserve(out.places.size());
    out.ends.reserve(out.places.size());
    TarReader::Batch batch(reader_);
    TarSample sample;
    for (std::size_t i = 0; i < out.places.size(); ++i) {
      prefetch_index(out.places, i);
      reader_.get(out.places[i], sample);
      out.keys.push_back(sample.key);
      if (extension) {
        out.members.push_back(member(out.places[i], sample, *extension));
      } else {
        out.members.insert(out.members.end(), sample.members.begin(), sample.members.end());
      }
      out.ends.push_back(out.members.size());
    }
    batch.finish();
    return out;
  }

  // Builds samples from their bytes.
  py::list assemble(const Located& located, const py::sequence& contents) {
    TarReader::Batch batch(reader_);
    py::list out = assemble_each(located, contents.size(), [&](std::size_t i, const auto& fill_with) {
      const Content content(py::object(contents[i]).ptr());
      fill_with(static_cast<const char*>(content.buffer.buf), static_cast<std::size_t>(content.buffer.len),
                [](const char* from, std::size_t size, void* to) { std::memcpy(to, from, size); });
    });
    batch.finish();
    return out;
  }

  // The same from mapped blocks, without another copy.
  py::list assemble_ranges(const Located& located, const BlockRanges& ranges) {
    if (!ranges.missing().empty()) throw py::value_error("blocks are missing");
    TarReader::Batch batch(reader_);
    RangeCopy copy(reader_.index_maps());
    py::list out = assemble_each(located, ranges.size(), [&](std::size_t i, const auto& fill_with) {
      ranges.prefetch(i);
      fill_with(ranges[i].data, ranges[i].size,
                [&](const char* from, std::size_t size, void* to) { copy(ranges[i], from, size, to); });
    });
    ranges.check();
    batch.finish();
    return out;
  }

  // Concatenates contents.
  static py::array_t<std::uint8_t> join(const py::sequence& contents) {
    std::vector<std::unique_ptr<Content>> parts;
    py::ssize_t size = 0;
    for (const py::handle content : contents) {
      parts.push_back(std::make_unique<Content>(content.ptr()));
      size += parts.back()->buffer.len;
    }
    py::array_t<std::uint8_t> out(size);
    std::uint8_t* to = out.mutable_data();
    for (const auto& part : parts) {
      std::memcpy(to, part->buffer.buf, static_cast<std::size_t>(part->buffer.len));
      to += part->buffer.len;
    }
    return out;
  }

  static py::array_t<std::uint8_t> join_ranges(const BlockRanges& ranges) {
    if (!ranges.missing().empty()) throw py::value_error("blocks are missing");
    std::size_t size = 0;
    for (std::size_t i = 0; i < ranges.size(); ++i) size += ranges[i].size;
    py::array_t<std::uint8_t> out(static_cast<py::ssize_t>(size));
    ranges.join(reinterpret_cast<char*>(out.mutable_data()));
    return out;
  }

  // One member of each sample, concatenated, and where each begins.
  py::tuple flat(const py::object& indices, const std::string& extension) {
    const auto places = find(indices);
    TarReader::Batch batch(reader_);
    py::array_t<std::int64_t> offsets(static_cast<py::ssize_t>(places.size() + 1));
    std::int64_t* offset = offsets.mutable_data();
    offset[0] = 0;
    TarSample sample;
    std::vector<TarMember> members(places.size());
    for (std::size_t i = 0; i < places.size(); ++i) {
      prefetch_index(places, i);
      reader_.get(places[i], sample);
      members[i] = member(places[i], sample, extension);
      offset[i + 1] = offset[i] + static_cast<std::int64_t>(members[i].size);
    }
    py::array_t<std::uint8_t> buffer(offset[places.size()]);
    std::uint8_t* out = buffer.mutable_data();
    for (std::size_t i = 0; i < places.size(); ++i) {
      if (const std::size_t next = i + kBytesAhead; next < places.size())
        reader_.prefetch_bytes(places[next].shard, members[next].offset);
      if (const std::size_t bytes = members[i].size)
        batch.copy(batch.view(places[i].shard, members[i].offset, bytes), bytes, out + offset[i]);
    }
    batch.finish();
    return py::make_tuple(buffer, offsets);
  }

 private:
  static constexpr std::size_t kPlacesAhead = 24, kRecordsAhead = 16, kBytesAhead = 8;

  std::vector<TarReader::Place> find(const py::object& indices) const {
    const py::object items = steal(PySequence_Fast(indices.ptr(), "indices must be a sequence of integers"));
    std::vector<TarReader::Place> places(static_cast<std::size_t>(PySequence_Fast_GET_SIZE(items.ptr())));
    const auto size = static_cast<std::int64_t>(reader_.size());
    for (std::size_t i = 0; i < places.size(); ++i) {
      PyObject* const item = PySequence_Fast_GET_ITEM(items.ptr(), static_cast<Py_ssize_t>(i));
      const std::int64_t index = PyLong_AsLongLong(item);
      const bool is_huge = index == -1 && PyErr_Occurred();
      if (is_huge && !PyErr_ExceptionMatches(PyExc_OverflowError)) throw py::error_already_set();
      if (is_huge) PyErr_Clear();
      if (is_huge || index < -size || index >= size)
        throw py::index_error("index " + (is_huge ? "beyond 2^63" : std::to_string(index)) +
                              " is out of range: the dataset has " + std::to_string(size) + " samples");
      places[i] = reader_.find(static_cast<std::uint64_t>(index < 0 ? index + size : index));
    }
    return places;
  }

  void prefetch_index(const std::vector<TarReader::Place>& places, std::size_t i) const {
    if (i + kPlacesAhead < places.size()) reader_.prefetch_place(places[i + kPlacesAhead]);
    if (i + kRecordsAhead < places.size()) reader_.prefetch_record(places[i + kRecordsAhead]);
  }

  void prefetch(const std::vector<TarReader::Place>& places, std::size_t i) const {
    prefetch_index(places, i);
    if (const std::size_t next = i + kBytesAhead; next < places.size())
      reader_.prefetch_bytes(places[next].shard, reader_.first_offset(places[next]));
  }

  // `with_content(i, fill_with)` calls fill_with(bytes, size, copy) for the content of sample i.
  template <class WithContent>
  py::list assemble_each(const Located& located, std::size_t count, const WithContent& with_content) {
    if (count != located.places.size()) throw py::value_error("contents must be as many as samples");
    py::list out(count);
    for (std::size_t i = 0; i < count; ++i) {
      with_content(i, [&](const char* bytes, std::size_t size, const auto& copy) {
        const auto members = located.members_of(i);
        const auto [begin, end] = extent(members);
        if (size != end - begin)
          throw py::value_error("content " + std::to_string(i) + " has " + std::to_string(size) + " bytes; expected " +
                                std::to_string(end - begin));
        py::object made = objects_.start(reader_, located.places[i].shard, located.keys[i]);
        objects_.fill(made, located.places[i].shard, members, bytes, begin, copy);
        PyList_SET_ITEM(out.ptr(), static_cast<Py_ssize_t>(i), made.release().ptr());
      });
    }
    return out;
  }

  const TarMember& member(TarReader::Place place, const TarSample& sample, const std::string& extension) const {
    const TarIndex& index = reader_.index(place.shard);
    const auto& extensions = index.extensions(index.table(reader_.number(place.shard)));
    for (const TarMember& found : sample.members)
      if (extensions[found.extension] == extension) return found;
    throw py::key_error("sample '" + std::string(sample.key) + "' of " + reader_.path(place.shard) + " has no '" +
                        extension + "'");
  }

  TarReader reader_;
  SampleObjects objects_;
};

}  // namespace

void register_tar_reader(py::module_& m) {
  py::class_<Located>(m, "LocatedSamples").def_property_readonly("spans", &Located::spans);
  py::class_<PyTarReader>(m, "TarReader")
      .def(py::init<UInt64<"max_maps">>(), "max_maps"_a)
      .def("add", &PyTarReader::add, "path"_a, "domain"_a, "index"_a)
      .def("add_all", &PyTarReader::add_all, "index"_a, "folder"_a)
      .def("__len__", &PyTarReader::size)
      .def("getitems", &PyTarReader::getitems, "indices"_a)
      .def("locate", &PyTarReader::locate, "indices"_a, "extension"_a = py::none(), py::keep_alive<0, 1>())
      .def("assemble", &PyTarReader::assemble_ranges, "samples"_a, "contents"_a)
      .def("assemble", &PyTarReader::assemble, "samples"_a, "contents"_a)
      .def_static("join", &PyTarReader::join_ranges, "contents"_a)
      .def_static("join", &PyTarReader::join, "contents"_a)
      .def("flat", &PyTarReader::flat, "indices"_a, "extension"_a);
}

}  // namespace pycooldown
