// The bindings of indexes of tar shards.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "file.h"
#include "integers.h"
#include "pycooldown/tar_index.h"
#include "pycooldown/tar_index_writer.h"
#include "python_text.h"

namespace py = pybind11;
using namespace py::literals;

namespace pycooldown {

namespace {

using Index = std::shared_ptr<TarIndex>;
using Shard = Integer<"shard", std::uint32_t>;

// Scans an object; `read(offset, size)` returns its bytes.
Index scan_object(const py::function& read, UInt64<"size"> size) {
  return scan_tar(
      [&](std::uint64_t offset, char* out, std::size_t count) {
        const py::bytes reply = read(offset, count).cast<py::bytes>();
        const std::string_view found = reply;  // a view, so `reply` must outlive it
        std::memcpy(out, found.data(), std::min(count, found.size()));
        return std::min(count, found.size());
      },
      size, std::nullopt);
}

std::uint32_t checked(const TarIndex& index, std::uint32_t shard) {
  if (shard >= index.num_shards()) {
    index.require_pages();  // lost pages are the more useful error
    throw py::index_error("the index has no such shard");
  }
  return shard;
}

bool has_fingerprint(const TarIndex& index, std::uint32_t shard, const std::string& path) {
  const File file(path);
  return index.has_fingerprint(
      shard, [&](std::uint64_t offset, char* out, std::size_t size) { return file.read(offset, out, size); });
}

py::list domains(const TarIndex& index) {
  py::list out;
  for (std::uint32_t d = 0; d < index.num_domains(); ++d)
    out.append(py::make_tuple(decode(index.domain(d)), index.first_shard(d),
                              index.first_sample(index.first_shard(d + 1)) - index.first_sample(index.first_shard(d))));
  return out;
}

py::list faults(const TarIndex& index) {
  py::list out;
  for (std::uint32_t f = 0; f < index.num_faults(); ++f) {
    const auto [shard, fault] = index.fault(f);
    out.append(py::make_tuple(shard, fault.offset, decode(fault.what)));
  }
  return out;
}

// Python methods that read an index under a guard: all of it, or one of its shards.
template <class Read>
auto of_index(Read read) {
  return [read](const TarIndex& index) { return index.guarded([&] { return read(index); }); };
}
template <class Read>
auto of_shard(Read read) {
  return [read](const TarIndex& index, Shard shard) {
    return index.guarded([&] { return read(index, checked(index, shard)); });
  };
}

}  // namespace

void register_tar_index(py::module_& m) {
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      std::rethrow_exception(thrown);
    } catch (const std::system_error& error) {
      PyErr_SetObject(PyExc_OSError, py::make_tuple(error.code().value(), decode(error.what())).ptr());
    }
  });
  py::class_<TarIndex, Index>(m, "TarIndex")
      .def_static("scan", &scan_tar_file, "path"_a, py::call_guard<py::gil_scoped_release>())
      .def_static("scan_object", &scan_object, "read"_a, "size"_a)
      .def_static("map", &TarIndex::map, "path"_a, py::call_guard<py::gil_scoped_release>())
      .def_static(
          "from_bytes",
          [](const py::bytes& bytes, UInt64<"shard_size"> shard_size, Int64<"shard_mtime_ns"> shard_mtime_ns) {
            std::string copy = bytes;
            const py::gil_scoped_release released;
            return index_of_shard(std::move(copy), shard_size, shard_mtime_ns);
          },
          "bytes"_a, "shard_size"_a, "shard_mtime_ns"_a)
      .def_static(
          "count",
          [](const py::bytes& start, UInt64<"shard_size"> shard_size, Int64<"shard_mtime_ns"> shard_mtime_ns) {
            return samples_in_index(std::string_view(start), shard_size, shard_mtime_ns);
          },
          "start"_a, "shard_size"_a, "shard_mtime_ns"_a)
      .def("to_bytes", of_index([](const TarIndex& index) { return py::bytes(index.bytes()); }))
      .def("__len__", of_index([](const TarIndex& index) { return index.num_samples(); }))
      .def_property_readonly("num_shards", of_index([](const TarIndex& index) { return index.num_shards(); }))
      .def_property_readonly("domains", of_index(&domains))
      .def_property_readonly("faults", of_index(&faults))
      .def("path", of_shard([](const TarIndex& index, std::uint32_t s) { return decode(index.path(s)); }), "shard"_a)
      .def("version", of_shard([](const TarIndex& index, std::uint32_t s) { return decode(index.version(s)); }),
           "shard"_a)
      .def("samples", of_shard([](const TarIndex& index, std::uint32_t s) { return index.num_samples(s); }), "shard"_a)
      .def("shard_size", of_shard([](const TarIndex& index, std::uint32_t s) { return index.shard_size(s); }),
           "shard"_a)
      .def("shard_mtime_ns", of_shard([](const TarIndex& index, std::uint32_t s) { return index.shard_mtime_ns(s); }),
           "shard"_a)
      .def(
          "has_fingerprint",
          [](const TarIndex& index, Shard shard, const std::string& path) {
            return index.guarded([&] { return has_fingerprint(index, checked(index, shard), path); });
          },
          "shard"_a, "path"_a, py::call_guard<py::gil_scoped_release>())
      .def(
          "verify",
          [](const TarIndex& index, Shard shard) {
            index.guarded([&] {
              index.verify(checked(index, shard));
              return true;
            });
          },
          "shard"_a, py::call_guard<py::gil_scoped_release>());
  py::class_<TarIndexWriter> writer(m, "TarIndexWriter");
  writer.def(py::init<>())
      .def("begin_domain", &TarIndexWriter::begin_domain, "name"_a)
      .def(
          "add",
          [](TarIndexWriter& self, const TarIndex& source, Shard shard, const std::string& path,
             const std::string& version) {
            return source.guarded([&] { return py::bytes(self.add(source, checked(source, shard), path, version)); });
          },
          "source"_a, "shard"_a, "path"_a, "version"_a)
      .def("finish", [](TarIndexWriter& self) {
        const auto [directory, header] = self.finish();
        return py::make_tuple(py::bytes(directory), py::bytes(header));
      });
  writer.attr("HEADER_SIZE") = TarIndexWriter::kHeaderSize;
}

}  // namespace pycooldown
