// The bindings of a cache's plan and blocks.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "arrays.h"
#include "integers.h"
#include "pycooldown/block_maps.h"
#include "pycooldown/cache_planner.h"

namespace py = pybind11;
using namespace py::literals;

namespace pycooldown {

namespace {

std::vector<std::int64_t> copy(const Input<std::int64_t>& array) {
  const auto values = view(array);
  return {values.begin(), values.end()};
}

py::bytes range_bytes(const BlockRanges& ranges, std::size_t i) {
  if (!ranges.missing().empty()) throw py::value_error("blocks are missing");
  if (i >= ranges.size()) throw py::index_error();
  const auto bytes =
      py::reinterpret_steal<py::bytes>(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(ranges[i].size)));
  if (!bytes) throw py::error_already_set();
  if (ranges[i].size > 0) RangeCopy()(ranges[i], ranges[i].data, ranges[i].size, PyBytes_AS_STRING(bytes.ptr()));
  ranges.check();
  return bytes;
}

void register_block_maps(py::module_& m) {
  m.attr("SEAL_BYTES") = kSealBytes;
  m.def(
      "seal_block",
      [](const py::buffer& content) {
        const py::buffer_info info = content.request();
        std::string seal;
        {
          py::gil_scoped_release release;
          seal = seal_block({static_cast<const char*>(info.ptr), static_cast<std::size_t>(info.size)});
        }
        return py::bytes(seal);
      },
      "content"_a, "Return the seal that follows the bytes of a block in its file.");
  py::class_<BlockRanges>(m, "BlockRanges",
                          "The bytes of ranges as a sequence, which can be read when no block is missing.")
      .def("__len__", &BlockRanges::size)
      .def("__getitem__", &range_bytes, "i"_a)
      .def_property_readonly("missing", &BlockRanges::missing, "Blocks that have no file.")
      .def_property_readonly("damaged", &BlockRanges::damaged, "The missing blocks that have a damaged file.")
      .def(
          "give",
          [](BlockRanges& ranges, Int64<"block"> block, const py::buffer& content) {
            const py::buffer_info info = content.request();
            ranges.give(block, {static_cast<const char*>(info.ptr), static_cast<std::size_t>(info.size)});
          },
          "block"_a, "content"_a, "Set the content of a missing block.")
      .def("retry", &BlockRanges::retry, "Map the missing blocks that have files now.");
  py::class_<BlockMaps, std::shared_ptr<BlockMaps>>(m, "BlockMaps", "The blocks of a cache that a process has mapped.")
      .def(py::init([](const std::string& folder, const Input<std::int64_t>& bases, const Input<std::int64_t>& bounds,
                       std::vector<std::string> stems, const std::string& states, UInt64<"max_maps"> max_maps) {
             BlockLayout layout(copy(bases), copy(bounds), std::move(stems));
             return std::make_shared<BlockMaps>(folder, std::move(layout), states, max_maps);
           }),
           py::kw_only(), "folder"_a, "bases"_a, "bounds"_a, "stems"_a, "states"_a, "max_maps"_a)
      .def_property_readonly("num_mapped", &BlockMaps::num_mapped)
      .def(
          "read",
          [](std::shared_ptr<BlockMaps> maps, const Input<std::int64_t>& objects, const Input<std::int64_t>& starts,
             const Input<std::int64_t>& ends) {
            return std::make_unique<BlockRanges>(std::move(maps), view(objects), view(starts), view(ends));
          },
          "objects"_a, "starts"_a, "ends"_a, "Map the blocks of ranges.");
}

}  // namespace

void register_cache(py::module_& m) {
  register_block_maps(m);
  py::class_<CachePlanner>(m, "CachePlanner",
                           "A planner of the fetches and evictions of a cache of blocks whose uses are known.")
      .def(py::init([](const Input<std::int64_t>& block_bytes, Int64<"limit"> limit, Int64<"depth"> depth,
                       Int64<"prefetched"> prefetched) {
             return CachePlanner(copy(block_bytes), limit, depth, prefetched);
           }),
           "block_bytes"_a, py::kw_only(), "limit"_a, "depth"_a, "prefetched"_a = 0)
      .def(
          "hold", [](CachePlanner& planner, const Input<std::int64_t>& blocks) { planner.hold(view(blocks)); },
          "blocks"_a, "Set the blocks that the cache holds before the first step.")
      .def(
          "plan",
          [](CachePlanner& planner, const Input<std::int64_t>& blocks, const Input<std::int64_t>& ends,
             UInt64<"num_steps"> num_steps) {
            const auto uses = view(blocks), until = view(ends);
            CacheActions actions;
            {
              py::gil_scoped_release release;
              actions = planner.plan(uses, until, num_steps);
            }
            return std::tuple(to_array<std::int64_t>(actions.fetches), to_array<std::int64_t>(actions.steps),
                              to_array<std::int64_t>(actions.after), to_array<std::int64_t>(actions.evict_ends),
                              to_array<std::int64_t>(actions.evictions));
          },
          "blocks"_a, "ends"_a, py::kw_only(), "num_steps"_a,
          "Plan the next steps; return (fetches, steps, after, evict_ends, evictions).")
      .def_property_readonly("held_bytes", &CachePlanner::held_bytes)
      .def_property_readonly("most_held_bytes", &CachePlanner::most_held_bytes)
      .def_property_readonly("next_step", &CachePlanner::next_step)
      .def_property_readonly("steps_over_limit", &CachePlanner::steps_over_limit)
      .def_property_readonly("steps_shrunk", &CachePlanner::steps_shrunk);
}

}  // namespace pycooldown
