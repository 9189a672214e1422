// The Python objects of samples from tar shards. Building samples is the hot path, so this uses CPython directly.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pycooldown/tar_index.h"
#include "pycooldown/tar_reader.h"
#include "python_text.h"

namespace pycooldown {

namespace py = pybind11;

inline py::object interned(py::object text) {
  PyObject* object = text.release().ptr();
  PyUnicode_InternInPlace(&object);
  return py::reinterpret_steal<py::object>(object);
}

// The bytes of members, from the first one's to the last one's.
inline std::pair<std::uint64_t, std::uint64_t> extent(std::span<const TarMember> members) {
  if (members.empty()) return {0, 0};
  return {members.front().offset, members.back().offset + members.back().size};
}

// Samples that were looked up in the index, which must outlive this object.
struct Located {
  std::vector<TarReader::Place> places;
  std::vector<std::string_view> keys;
  std::vector<TarMember> members;  // of all samples
  std::vector<std::size_t> ends;   // of those of each sample

  std::span<const TarMember> members_of(std::size_t i) const {
    const std::size_t begin = i == 0 ? 0 : ends[i - 1];
    return {members.data() + begin, ends[i] - begin};
  }

  // Shards, begins and ends.
  py::tuple spans() const {
    const auto size = static_cast<py::ssize_t>(places.size());
    py::array_t<std::int64_t> shards(size), begins(size), stops(size);
    for (std::size_t i = 0; i < places.size(); ++i) {
      const auto [begin, end] = extent(members_of(i));
      shards.mutable_data()[i] = places[i].shard;
      begins.mutable_data()[i] = static_cast<std::int64_t>(begin);
      stops.mutable_data()[i] = static_cast<std::int64_t>(end);
    }
    return py::make_tuple(shards, begins, stops);
  }
};

class SampleObjects {
 public:
  // The values common to the samples of a domain.
  py::dict common_of(const py::str& domain) {
    if (!names_.empty() && py::object(names_.back().common[domain_]).equal(domain)) return names_.back().common;
    py::dict common;
    common[key_] = py::none();
    common[url_] = py::none();
    common[domain_] = interned(domain);
    return common;
  }

  // Adds the shards of an index; `common` has the common values of each.
  void add(const TarIndex& index, const std::vector<py::dict>& common) {
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

  // A sample without its members.
  py::object start(const TarReader& reader, std::uint32_t shard, std::string_view key) {
    Names& names = names_[shard];
    if (!names.url) names.url = decode(reader.path(shard));
    py::object out = steal(PyDict_Copy(names.common.ptr()));
    set(out, url_, names.url);
    set(out, key_, decode(key));
    return out;
  }

  // Adds the members, whose bytes begin with those at `begin` in the shard.
  template <class Copy>
  void fill(const py::object& out, std::uint32_t shard, std::span<const TarMember> members, const char* bytes,
            std::uint64_t begin, const Copy& copy) const {
    const auto& extensions = extensions_[names_[shard].extensions];
    for (const TarMember& member : members) {
      py::object value = steal(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(member.size)));
      if (member.size > 0)  // all empty values are one object
        copy(bytes + (member.offset - begin), member.size, PyBytes_AS_STRING(value.ptr()));
      set(out, extensions[member.extension], value);
    }
  }

 private:
  // The values common to the samples of a shard.
  struct Names {
    py::dict common;  // copied for each sample, which is cheaper than filling a new dict
    std::uint32_t extensions;
    py::object url;  // created on first use
  };

  static void set(const py::object& dict, const py::object& key, const py::object& value) {
    if (PyDict_SetItem(dict.ptr(), key.ptr(), value.ptr()) != 0) throw py::error_already_set();
  }

  std::vector<Names> names_;  // by shard
  std::vector<std::vector<py::object>> extensions_;
  std::map<std::vector<std::string>, std::uint32_t> extension_ids_;
  py::object key_ = interned(py::str("__key__")), url_ = interned(py::str("__url__")),
             domain_ = interned(py::str("__domain__"));
};

}  // namespace pycooldown
