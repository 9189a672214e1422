// The bindings of the tar reader. Building samples is the hot path, so it uses CPython's own interface.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "integers.h"
#include "pycooldown/tar_index.h"
#include "pycooldown/tar_reader.h"

namespace py = pybind11;
using namespace py::literals;

namespace pycooldown {

namespace {

py::object steal(PyObject* object) {
  if (!object) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

// Names in a tar are bytes. As in tarfile, bytes that are not UTF-8 become surrogates.
py::object decode(std::string_view text) {
  return steal(PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "surrogateescape"));
}

py::object interned(py::object text) {
  PyObject* object = text.release().ptr();
  PyUnicode_InternInPlace(&object);
  return py::reinterpret_steal<py::object>(object);
}

// A TarReader with the Python strings that its samples share.
class PyTarReader {
 public:
  explicit PyTarReader(UInt64<"max_maps"> max_maps) : reader_(max_maps) {}

  void add(const std::string& path, py::str domain, std::shared_ptr<const TarIndex> index) {
    Names names{py::dict(), {}};
    names.common[key_] = py::none();
    names.common[url_] = decode(path);
    names.common[domain_] = interned(std::move(domain));
    for (const std::string& extension : index->extensions)
      names.extensions.push_back(interned(decode(extension).attr("lower")()));
    reader_.add(path, std::move(index));
    names_.push_back(std::move(names));
  }

  std::uint64_t size() const { return reader_.size(); }

  py::list getitems(const py::object& indices) {
    const auto places = find(indices);
    TarReader::Batch batch(reader_);
    py::list out(places.size());
    for (std::size_t i = 0; i < places.size(); ++i) {
      prefetch(places, i);
      PyList_SET_ITEM(out.ptr(), static_cast<Py_ssize_t>(i), sample(batch, places[i]).release().ptr());
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
    std::vector<const TarMember*> members(places.size());
    for (std::size_t i = 0; i < places.size(); ++i) {
      if (i + kRowsAhead < places.size()) reader_.prefetch_row(places[i + kRowsAhead]);
      members[i] = &member(places[i], extension);
      offset[i + 1] = offset[i] + static_cast<std::int64_t>(members[i]->size);
    }
    py::array_t<std::uint8_t> buffer(offset[places.size()]);
    std::uint8_t* out = buffer.mutable_data();
    for (std::size_t i = 0; i < places.size(); ++i) {
      if (i + kBytesAhead < places.size()) reader_.prefetch_bytes(places[i + kBytesAhead]);
      if (const std::size_t bytes = members[i]->size)
        batch.copy(batch.view(places[i].shard, members[i]->offset(), bytes), bytes, out + offset[i]);
    }
    batch.finish();
    return py::make_tuple(buffer, offsets);
  }

 private:
  static constexpr std::size_t kRowsAhead = 16, kBytesAhead = 8;

  struct Names {
    py::dict common;  // each sample of the shard starts as a copy of it, which is cheaper than filling a new one
    std::vector<py::object> extensions;
  };

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

  void prefetch(const std::vector<TarReader::Place>& places, std::size_t i) const {
    if (i + kRowsAhead < places.size()) reader_.prefetch_row(places[i + kRowsAhead]);
    if (i + kBytesAhead < places.size()) reader_.prefetch_bytes(places[i + kBytesAhead]);
  }

  py::object sample(TarReader::Batch& batch, TarReader::Place place) {
    const TarIndex& index = reader_.index(place.shard);
    const Names& names = names_[place.shard];
    py::object out = steal(PyDict_Copy(names.common.ptr()));
    set(out, key_, decode(index.key(place.sample)));
    const std::span members(index.members.data() + index.samples[place.sample].member,
                            index.members.data() + index.samples[place.sample + 1].member);
    if (members.empty()) return out;
    // Only now: making a dictionary may run the garbage collector and so other threads, which may unmap the shard.
    // Making bytes and setting items never does.
    const std::uint64_t begin = members.front().offset(), end = members.back().offset() + members.back().size;
    const char* bytes = batch.view(place.shard, begin, end - begin);
    for (const TarMember& member : members) {
      py::object value = steal(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(member.size)));
      if (member.size > 0)  // all empty values are one object
        batch.copy(bytes + (member.offset() - begin), member.size, PyBytes_AS_STRING(value.ptr()));
      set(out, names.extensions[member.extension], value);
    }
    return out;
  }

  static void set(const py::object& dict, const py::object& key, const py::object& value) {
    if (PyDict_SetItem(dict.ptr(), key.ptr(), value.ptr()) != 0) throw py::error_already_set();
  }

  const TarMember& member(TarReader::Place place, const std::string& extension) const {
    const TarIndex& index = reader_.index(place.shard);
    for (std::uint64_t m = index.samples[place.sample].member; m < index.samples[place.sample + 1].member; ++m)
      if (index.extensions[index.members[m].extension] == extension) return index.members[m];
    throw py::key_error("sample '" + std::string(index.key(place.sample)) + "' of " + reader_.path(place.shard) +
                        " has no '" + extension + "'");
  }

  TarReader reader_;
  std::vector<Names> names_;
  py::object key_ = interned(py::str("__key__")), url_ = interned(py::str("__url__")),
             domain_ = interned(py::str("__domain__"));
};

}  // namespace

void register_tar(py::module_& m) {
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      std::rethrow_exception(thrown);
    } catch (const std::system_error& error) {
      PyErr_SetObject(PyExc_OSError, py::make_tuple(error.code().value(), decode(error.what())).ptr());
    }
  });
  py::class_<TarIndex, std::shared_ptr<TarIndex>>(m, "TarIndex")
      .def_static("scan", &scan_tar_file, "path"_a, py::call_guard<py::gil_scoped_release>())
      .def_static(
          "from_bytes",
          [](const py::bytes& bytes, UInt64<"shard_size"> shard_size, Int64<"shard_mtime_ns"> shard_mtime_ns) {
            const std::string_view view = bytes;
            const py::gil_scoped_release released;
            return index_from_bytes(view, shard_size, shard_mtime_ns);
          },
          "bytes"_a, "shard_size"_a, "shard_mtime_ns"_a)
      .def_static(
          "count",
          [](const py::bytes& start, UInt64<"shard_size"> shard_size, Int64<"shard_mtime_ns"> shard_mtime_ns) {
            return samples_in_index(std::string_view(start), shard_size, shard_mtime_ns);
          },
          "start"_a, "shard_size"_a, "shard_mtime_ns"_a)
      .def("to_bytes", [](const TarIndex& index) { return py::bytes(index_to_bytes(index)); })
      .def("__len__", &TarIndex::size)
      .def_readonly("shard_size", &TarIndex::shard_size)
      .def_readonly("shard_mtime_ns", &TarIndex::shard_mtime_ns)
      .def_property_readonly("faults", [](const TarIndex& index) {
        py::list out;
        for (const TarFault& fault : index.faults) out.append(py::make_tuple(fault.offset, decode(fault.what)));
        return out;
      });
  py::class_<PyTarReader>(m, "TarReader")
      .def(py::init<UInt64<"max_maps">>(), "max_maps"_a)
      .def("add", &PyTarReader::add, "path"_a, "domain"_a, "index"_a)
      .def("__len__", &PyTarReader::size)
      .def("getitems", &PyTarReader::getitems, "indices"_a)
      .def("flat", &PyTarReader::flat, "indices"_a, "extension"_a);
}

}  // namespace pycooldown
