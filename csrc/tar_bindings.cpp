// The bindings of the tar reader. Building samples is the hot path, so it uses CPython's own interface.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "integers.h"
#include "pycooldown/tar_index.h"
#include "pycooldown/tar_reader.h"
#include "python_text.h"

namespace py = pybind11;
using namespace py::literals;

namespace pycooldown {

namespace {

py::object interned(py::object text) {
  PyObject* object = text.release().ptr();
  PyUnicode_InternInPlace(&object);
  return py::reinterpret_steal<py::object>(object);
}

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

// TarReader with the Python strings that its samples share. Building samples is the hot path: it talks to CPython
// itself.
class PyTarReader {
 public:
  explicit PyTarReader(UInt64<"max_maps"> max_maps) : reader_(max_maps) {}

  void add(const std::string& path, const py::str& domain, Index index) {
    add_names(*index, {common_of(domain)});
    reader_.add(path, std::move(index));
  }

  void add_all(const Index& index, const std::string& folder) {
    index->guarded([&] {
      std::vector<py::dict> common;
      for (std::uint32_t d = 0; d < index->num_domains(); ++d)
        common.insert(common.end(), index->first_shard(d + 1) - index->first_shard(d),
                      common_of(py::str(decode(index->domain(d)))));
      add_names(*index, common);
      reader_.add_all(index, folder);
      return true;
    });
  }

  std::uint64_t size() const { return reader_.size(); }

  py::list getitems(const py::object& indices) {
    const auto places = find(indices);
    TarReader::Batch batch(reader_);
    TarSample sample;  // here, since other threads may be in this reader too
    py::list out(places.size());
    for (std::size_t i = 0; i < places.size(); ++i) {
      prefetch(places, i);
      reader_.get(places[i], sample);
      const py::object made = start(places[i], sample);
      // Looked at only now: making a dictionary may run the garbage collector and so other threads, which may unmap
      // the shard; making bytes and setting items never does.
      if (const auto [begin, end] = extent(sample); !sample.members.empty())
        fill(made, places[i], sample, batch.view(places[i].shard, begin, end - begin), begin,
             [&](const char* from, std::size_t size, void* to) { batch.copy(from, size, to); });
      PyList_SET_ITEM(out.ptr(), static_cast<Py_ssize_t>(i), made.inc_ref().ptr());
    }
    batch.finish();
    return out;
  }

  // Where the bytes of samples lie, or those of one member of each: shards, begins and ends.
  py::tuple locate(const py::object& indices, const std::optional<std::string>& extension) {
    const auto places = find(indices);
    TarReader::Batch batch(reader_);
    TarSample sample;
    const auto size = static_cast<py::ssize_t>(places.size());
    py::array_t<std::int64_t> shards(size), begins(size), ends(size);
    for (std::size_t i = 0; i < places.size(); ++i) {
      prefetch_index(places, i);
      reader_.get(places[i], sample);
      auto [begin, end] = extent(sample);
      if (extension) {
        const TarMember& found = member(places[i], sample, *extension);
        begin = found.offset, end = begin + found.size;
      }
      shards.mutable_data()[i] = places[i].shard;
      begins.mutable_data()[i] = static_cast<std::int64_t>(begin);
      ends.mutable_data()[i] = static_cast<std::int64_t>(end);
    }
    batch.finish();
    return py::make_tuple(shards, begins, ends);
  }

  // Samples out of their bytes, as `locate` names them.
  py::list assemble(const py::object& indices, const py::sequence& contents) {
    const auto places = find(indices);
    if (contents.size() != places.size()) throw py::value_error("contents must be as many as indices");
    TarReader::Batch batch(reader_);
    TarSample sample;  // here, since other threads may be in this reader too
    py::list out(places.size());
    for (std::size_t i = 0; i < places.size(); ++i) {
      const Content content(py::object(contents[i]).ptr());
      reader_.get(places[i], sample);
      const auto [begin, end] = extent(sample);
      if (static_cast<std::uint64_t>(content.buffer.len) != end - begin)
        throw py::value_error("content " + std::to_string(i) + " has " + std::to_string(content.buffer.len) +
                              " bytes; expected " + std::to_string(end - begin));
      const py::object made = start(places[i], sample);
      fill(made, places[i], sample, static_cast<const char*>(content.buffer.buf), begin,
           [](const char* from, std::size_t size, void* to) { std::memcpy(to, from, size); });
      PyList_SET_ITEM(out.ptr(), static_cast<Py_ssize_t>(i), made.inc_ref().ptr());
    }
    batch.finish();
    return out;
  }

  // One member of each sample, end to end, and where each begins.
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

  // What the samples of a shard share.
  struct Names {
    py::dict common;  // what each sample starts from: copying it is cheaper than filling a new one
    std::uint32_t extensions;
    py::object url;  // made when it is first needed
  };

  py::dict common_of(const py::str& domain) {
    if (!names_.empty() && py::object(names_.back().common[domain_]).equal(domain)) return names_.back().common;
    py::dict common;
    common[key_] = py::none();
    common[url_] = py::none();
    common[domain_] = interned(domain);
    return common;
  }

  void add_names(const TarIndex& index, const std::vector<py::dict>& common) {
    std::vector<std::uint32_t> tables;
    for (std::uint32_t table = 0; table < index.num_tables(); ++table) {
      const auto& spelled = index.extensions(table);
      const auto [entry, is_new] = extension_ids_.try_emplace(spelled, static_cast<std::uint32_t>(extensions_.size()));
      tables.push_back(entry->second);
      if (!is_new) continue;
      auto& names = extensions_.emplace_back();
      for (const std::string& extension : spelled) names.push_back(interned(decode(extension).attr("lower")()));
    }
    for (std::uint32_t shard = 0; shard < index.num_shards(); ++shard)
      names_.push_back({common[shard], tables[index.table(shard)], py::object()});
  }

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

  static std::pair<std::uint64_t, std::uint64_t> extent(const TarSample& sample) {
    if (sample.members.empty()) return {0, 0};
    const TarMember &first = sample.members.front(), &last = sample.members.back();
    return {first.offset, last.offset + last.size};
  }

  // A sample without its members.
  py::object start(TarReader::Place place, const TarSample& sample) {
    Names& names = names_[place.shard];
    if (!names.url) names.url = decode(reader_.path(place.shard));
    py::object out = steal(PyDict_Copy(names.common.ptr()));
    set(out, url_, names.url);
    set(out, key_, decode(sample.key));
    return out;
  }

  template <class Copy>
  void fill(const py::object& out, TarReader::Place place, const TarSample& sample, const char* bytes,
            std::uint64_t begin, const Copy& copy) {
    const auto& extensions = extensions_[names_[place.shard].extensions];
    for (const TarMember& member : sample.members) {
      py::object value = steal(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(member.size)));
      if (member.size > 0)  // all empty values are one object
        copy(bytes + (member.offset - begin), member.size, PyBytes_AS_STRING(value.ptr()));
      set(out, extensions[member.extension], value);
    }
  }

  static void set(const py::object& dict, const py::object& key, const py::object& value) {
    if (PyDict_SetItem(dict.ptr(), key.ptr(), value.ptr()) != 0) throw py::error_already_set();
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
  std::vector<Names> names_;
  std::vector<std::vector<py::object>> extensions_;
  std::map<std::vector<std::string>, std::uint32_t> extension_ids_;
  py::object key_ = interned(py::str("__key__")), url_ = interned(py::str("__url__")),
             domain_ = interned(py::str("__domain__"));
};

}  // namespace

void register_tar_reader(py::module_& m) {
  py::class_<PyTarReader>(m, "TarReader")
      .def(py::init<UInt64<"max_maps">>(), "max_maps"_a)
      .def("add", &PyTarReader::add, "path"_a, "domain"_a, "index"_a)
      .def("add_all", &PyTarReader::add_all, "index"_a, "folder"_a)
      .def("__len__", &PyTarReader::size)
      .def("getitems", &PyTarReader::getitems, "indices"_a)
      .def("locate", &PyTarReader::locate, "indices"_a, "extension"_a = py::none())
      .def("assemble", &PyTarReader::assemble, "indices"_a, "contents"_a)
      .def("flat", &PyTarReader::flat, "indices"_a, "extension"_a);
}

}  // namespace pycooldown
