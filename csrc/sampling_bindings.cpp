// The bindings of batch plans.
#include <pybind11/native_enum.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "arrays.h"
#include "integers.h"
#include "pycooldown/alias_table.h"
#include "pycooldown/batch_planner.h"
#include "signal_check.h"

namespace py = pybind11;
using namespace py::literals;

namespace pycooldown {

namespace {

// Pairs (table, end): a mixture, and the step up to which (exclusively) it is in force.
using SpanPairs = std::vector<std::pair<std::shared_ptr<const AliasTable>, UInt64<"end">>>;

std::vector<MixtureSpan> spans_of(const SpanPairs& pairs) {
  if (pairs.empty()) throw std::invalid_argument("spans is empty; expected the mixture of the step at least");
  std::vector<MixtureSpan> spans;
  for (const auto& [table, end] : pairs) spans.push_back({table, end});
  return spans;
}

// Moves past the batches of num_steps steps with different mixtures: row i of `sampling` is that of step first_step +
// i. Rows after num_steps only let quota allocation look ahead. The last row holds until step `end`.
void skip_rows(BatchPlanner& planner, const Input<double>& sampling, UInt64<"first_step"> first_step,
               UInt64<"num_steps"> num_steps, UInt64<"look_ahead"> look_ahead, UInt64<"end"> end) {
  if (sampling.ndim() != 2 || static_cast<std::size_t>(sampling.shape(0)) < num_steps || look_ahead == 0) {
    throw std::invalid_argument("sampling must have a row for each of the " + std::to_string(num_steps) + " steps");
  }
  const auto num_rows = static_cast<std::size_t>(sampling.shape(0));
  const auto num_domains = static_cast<std::size_t>(sampling.shape(1));
  const auto values = view(sampling);
  py::gil_scoped_release release;
  SignalCheck check_signals;
  std::vector<MixtureSpan> spans;
  std::size_t known = 0;  // rows
  for (std::size_t step = 0; step < num_steps; ++step) {
    for (; known < num_rows && known < step + look_ahead; ++known) {
      const std::uint64_t until = known + 1 == num_rows ? end : first_step + known + 1;
      spans.push_back({std::make_shared<AliasTable>(values.subspan(known * num_domains, num_domains)), until});
    }
    planner.skip(spans, first_step + step);
    spans.erase(spans.begin());
    check_signals(planner.batch_size() + 10 * num_domains);
  }
}

}  // namespace

void register_sampling(py::module_& m) {
  py::native_enum<Allocation>(m, "Allocation", "enum.Enum")
      .value("multinomial", Allocation::multinomial)
      .value("systematic", Allocation::systematic)
      .value("quota", Allocation::quota)
      .finalize();

  py::class_<BatchPlanner>(m, "BatchPlanner", "A planner of batches; it counts how often each domain is drawn.")
      .def(py::init([](const Input<std::int64_t>& sizes, Allocation allocation, Int64<"batch_size"> batch_size,
                       UInt64<"seed"> seed, bool shuffle, bool once, bool homogeneous) {
             return BatchPlanner(view(sizes), allocation, batch_size, seed, shuffle, once, homogeneous);
           }),
           "sizes"_a, "allocation"_a, py::kw_only(), "batch_size"_a, "seed"_a, "shuffle"_a, "once"_a = false,
           "homogeneous"_a = false)
      .def_property_readonly("counts", [](const BatchPlanner& p) { return to_array<std::int64_t>(p.counts()); })
      .def_property_readonly("credits", [](const BatchPlanner& p) { return to_array<std::int64_t>(p.credits()); })
      .def(
          "set_epoch_sizes",
          [](BatchPlanner& planner, UInt64<"domain"> domain,
             const std::vector<std::pair<UInt64<"first_draw">, UInt64<"size">>>& pairs) {
            std::vector<EpochSize> sizes;
            for (const auto& [first_draw, size] : pairs) sizes.push_back({first_draw, size});
            planner.set_epoch_sizes(domain, std::move(sizes));
          },
          "domain"_a, "sizes"_a, "Set pairs (first_draw, size) of a domain that grows: its size from this draw on.")
      .def(
          "set_batch_sizes",
          [](BatchPlanner& planner, const std::vector<std::pair<UInt64<"first_step">, UInt64<"batch_size">>>& pairs) {
            std::vector<BatchSize> sizes;
            for (const auto& [first_step, size] : pairs) sizes.push_back({first_step, size});
            planner.set_batch_sizes(sizes);
          },
          "sizes"_a, "Set pairs (first_step, batch_size) of batches whose size changes.")
      .def(
          "set_blocks",
          [](BatchPlanner& planner, UInt64<"domain"> domain, const Input<std::int64_t>& shard_sizes,
             UInt64<"block"> block,
             UInt64<"group"> group) { planner.set_blocks(domain, BlockLayout(view(shard_sizes), block, group)); },
          "domain"_a, "shard_sizes"_a, py::kw_only(), "block"_a, "group"_a,
          "Shuffle a domain by blocks of its shards, in groups.")
      .def(
          "seek",
          [](BatchPlanner& planner, const Input<std::int64_t>& counts, const Input<std::int64_t>& credits) {
            planner.seek(view(counts), view(credits));
          },
          "counts"_a, "credits"_a)
      .def(
          "plan",
          [](BatchPlanner& planner, const SpanPairs& spans, UInt64<"step"> step, UInt64<"begin"> begin,
             UInt64<"end"> end) {
            if (begin > end) throw std::invalid_argument("begin is after end");
            py::array_t<std::int64_t> indices(static_cast<py::ssize_t>(end - begin)), epochs(indices.size());
            const auto to_indices = view(indices), to_epochs = view(epochs);
            {
              py::gil_scoped_release release;
              planner.plan(spans_of(spans), step, begin, to_indices, to_epochs);
            }
            return std::tuple(to_array(planner.domain_ids().subspan(begin, end - begin)), indices, epochs);
          },
          "spans"_a, "step"_a, "begin"_a, "end"_a,
          "Plan a step and move past it; return (domain_ids, indices, epochs) of the slots in [begin, end).")
      .def(
          "skip",
          [](BatchPlanner& planner, const SpanPairs& pairs, UInt64<"first_step"> first_step,
             UInt64<"last_step"> last_step) {
            const auto spans = spans_of(pairs);
            py::gil_scoped_release release;
            SignalCheck check_signals;
            for (std::uint64_t step = first_step; step < last_step; ++step) {
              planner.skip(spans, step);
              check_signals(planner.batch_size() + spans.front().table->weights().size());
            }
          },
          "spans"_a, "first_step"_a, "last_step"_a, "Move past the batches of steps [first_step, last_step).")
      .def("skip_rows", &skip_rows, "sampling"_a, py::kw_only(), "first_step"_a, "num_steps"_a, "look_ahead"_a, "end"_a,
           "Move past the batches of steps whose mixtures are the rows of sampling.");
}

}  // namespace pycooldown
