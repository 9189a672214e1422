// The Python side of the plan of a cache.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "arrays.h"
#include "integers.h"
#include "pycooldown/cache_plan.h"

namespace py = pybind11;
using namespace py::literals;

namespace pycooldown {

void register_cache(py::module_& m) {
  py::class_<CachePlanner>(m, "CachePlanner",
                           "A planner of what a cache of blocks fetches and evicts when its uses are known.")
      .def(py::init([](const Input<std::int64_t>& block_bytes, Int64<"limit"> limit, Int64<"depth"> depth) {
             const auto bytes = view(block_bytes);
             return CachePlanner({bytes.begin(), bytes.end()}, limit, depth);
           }),
           "block_bytes"_a, py::kw_only(), "limit"_a, "depth"_a)
      .def(
          "hold", [](CachePlanner& planner, const Input<std::int64_t>& blocks) { planner.hold(view(blocks)); },
          "blocks"_a, "Take blocks that are there before the first step.")
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
