// The bindings of random numbers, draws and batch plans.
#include <pybind11/native_enum.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "arrays.h"
#include "integers.h"
#include "pycooldown/alias_table.h"
#include "pycooldown/batch_plan.h"
#include "pycooldown/device_draw.h"
#include "pycooldown/philox.h"
#ifdef PYCOOLDOWN_CUDA
#include "alias_draw.h"
#endif

namespace py = pybind11;
using namespace py::literals;

namespace pycooldown {

namespace {

// Pairs (table, end): a mixture, and the step before which it is in force.
using SpanPairs = std::vector<std::pair<std::shared_ptr<const AliasTable>, UInt64<"end">>>;

std::vector<MixtureSpan> spans_of(const SpanPairs& pairs) {
  if (pairs.empty()) throw std::invalid_argument("spans is empty; expected the mixture of the step at least");
  std::vector<MixtureSpan> spans;
  for (const auto& [table, end] : pairs) spans.push_back({table, end});
  return spans;
}

// Lets a long loop that does not hold the GIL be interrupted: runs Python's signal handlers now and then, and throws
// what they raise.
class SignalCheck {
 public:
  // Call it in each turn of the loop, with the work done since the last call, in nanoseconds by a rough estimate.
  void operator()(std::uint64_t work) {
    done_ += work;
    if (done_ < 20'000'000) return;
    done_ = 0;
    py::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }

 private:
  std::uint64_t done_ = 0;
};

// Draws piece by piece and looks for signals in between.
void draw_interruptibly(const AliasTable& table, std::uint64_t seed, std::uint64_t offset, std::span<std::int32_t> out,
                        int num_threads) {
  constexpr std::size_t kPiece = std::size_t{1} << 25;
  SignalCheck check_signals;
  while (out.size() > kPiece && out.size() <= ~offset) {  // beyond, draw() throws
    draw(table.view(), seed, offset, out.first(kPiece), num_threads);
    offset += kPiece;
    out = out.subspan(kPiece);
    check_signals(kPiece);
  }
  draw(table.view(), seed, offset, out, num_threads);
}

// Moves past the batches of num_steps steps, each with a mixture of its own: row i of `sampling` is that of step
// first_step + i. The rows beyond num_steps are only looked ahead at. The last row holds until step `end`.
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

void register_philox(py::module_& m) {
  m.def(
      "philox4x32",
      [](const std::array<Integer<"counter", std::uint32_t>, 4>& counter,
         const std::array<Integer<"key", std::uint32_t>, 2>& key) {
        const Block out = philox(Block{{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
        return std::array<std::uint32_t, 4>{out.word[0], out.word[1], out.word[2], out.word[3]};
      },
      "counter"_a, "key"_a, "Return one block of Philox4x32-10.");
  m.def(
      "permutation",
      [](Int64<"size"> size, UInt64<"seed"> seed, Integer<"domain", std::uint32_t> domain, UInt64<"epoch"> epoch) {
        if (size < 1) throw std::invalid_argument("size = " + std::to_string(size) + "; expected at least 1");
        py::array_t<std::int64_t> out(size);
        auto values = view(out);
        py::gil_scoped_release release;
        const Permutation permutation(seed, Stream::permutation, epoch, domain, static_cast<std::uint64_t>(size));
        SignalCheck check_signals;
        for (std::size_t i = 0; i < values.size(); ++i) {
          values[i] = static_cast<std::int64_t>(permutation(i));
          check_signals(20);
        }
        return out;
      },
      "size"_a, py::kw_only(), "seed"_a, "domain"_a = 0, "epoch"_a = 0,
      "Return the order of a domain's samples in an epoch.");
}

constexpr const char* kAliasTableDoc =
    R"(A table that draws outcomes with given probabilities in constant time (Walker's alias method).

Draw number ``i`` is a pure function of ``(seed, i)``, the same on every instruction set, thread count and device.

Args:
    probabilities: Shape (K,), finite and not negative; they need not sum to 1. They are rounded to multiples of 2^-32,
        and a positive one is never rounded to 0.

Raises:
    ValueError: If a probability is negative, NaN or infinite, or all are zero.
)";

constexpr const char* kDrawDoc = R"(Draw ``n`` outcomes.

Args:
    n: Number of draws.
    seed: An integer in [0, 2^64).
    offset: Number of the first draw; ``draw(a + b)`` equals ``draw(a)`` followed by ``draw(b, offset=a)``.
    num_threads: Number of threads; ``None`` for one per processor.

Returns:
    Outcomes in [0, K), int32 of shape (n,).

Raises:
    ValueError: If an argument is out of range, or a draw would have a number beyond 2^64 - 2.
)";

}  // namespace

void register_sampling(py::module_& m) {
  register_philox(m);
  py::class_<AliasTable, std::shared_ptr<AliasTable>>(m, "AliasTable", kAliasTableDoc)
      .def(py::init([](const Input<double>& probabilities) {
             if (probabilities.ndim() != 1) {
               throw std::invalid_argument("probabilities has " + std::to_string(probabilities.ndim()) +
                                           " dimensions; expected a vector");
             }
             const auto values = view(probabilities);
             py::gil_scoped_release release;
             return std::make_shared<AliasTable>(values);
           }),
           "probabilities"_a)
      .def(
          "draw",
          [](const AliasTable& table, Int64<"n"> n, UInt64<"seed"> seed, UInt64<"offset"> offset,
             std::optional<Integer<"num_threads", int>> num_threads) {
            if (n < 0) throw std::invalid_argument("n = " + std::to_string(n) + "; expected a number of draws >= 0");
            if (num_threads && *num_threads < 1) {
              throw std::invalid_argument("num_threads = " + std::to_string(*num_threads) +
                                          "; expected at least 1, or None for one per processor");
            }
            py::array_t<std::int32_t> out(n);
            const auto values = view(out);
            py::gil_scoped_release release;
            draw_interruptibly(table, seed, offset, values, num_threads ? num_threads->value : 0);
            return out;
          },
          "n"_a, py::kw_only(), "seed"_a, "offset"_a = 0, "num_threads"_a = py::none(), kDrawDoc)
      .def_property_readonly(
          "probabilities",
          [](const AliasTable& table) {
            py::array_t<double> out(static_cast<py::ssize_t>(table.weights().size()));
            auto values = view(out);
            for (std::size_t i = 0; i < values.size(); ++i)
              values[i] = static_cast<double>(table.weights()[i]) * 0x1p-32;
            return out;
          },
          "The exact probabilities of the draws, multiples of 2^-32; float64 of shape (K,).")
      .def("__len__", [](const AliasTable& table) { return table.weights().size(); })
      .def("__repr__", [](const AliasTable& table) {
        return "AliasTable(num_outcomes=" + std::to_string(table.weights().size()) + ")";
      });

  m.def(
      "draw_as_device",
      [](const AliasTable& table, Int64<"n"> n, UInt64<"seed"> seed, UInt64<"offset"> offset) {
        if (n < 0) throw std::invalid_argument("n = " + std::to_string(n) + "; expected a number of draws >= 0");
        if (static_cast<std::uint64_t>(n) > ~offset) throw std::invalid_argument("draws beyond number 2^64 - 2");
        py::array_t<std::int32_t> out(n);
        const auto values = view(out);
        for (std::uint64_t thread = 0; thread < num_draw_threads(offset, values.size()); ++thread)
          draw_as_thread(table.view(), seed, offset, values.size(), thread, values.data());
        return out;
      },
      "table"_a, "n"_a, py::kw_only(), "seed"_a, "offset"_a,
      "Draw on the host what the threads of the device kernel write.");
#ifdef PYCOOLDOWN_CUDA
  py::class_<DeviceAliasTable>(m, "DeviceAliasTable", "An alias table on the current CUDA device.")
      .def(py::init<const AliasTable&>(), "table"_a)
      .def_property_readonly("device", &DeviceAliasTable::device)
      .def(
          "draw",
          [](const DeviceAliasTable& table, Integer<"out", std::uintptr_t> out, UInt64<"n"> n, UInt64<"seed"> seed,
             UInt64<"offset"> offset, Integer<"stream", std::uintptr_t> stream) {
            py::gil_scoped_release release;
            table.draw(reinterpret_cast<std::int32_t*>(out.value), n, seed, offset,
                       reinterpret_cast<void*>(stream.value));
          },
          "out"_a, "n"_a, py::kw_only(), "seed"_a, "offset"_a = 0, "stream"_a = 0,
          "Write n draws as int32 to the device address `out` (of a tensor: data_ptr()), queued on a stream.");
#endif

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
          "domain"_a, "sizes"_a, "Take pairs (first_draw, size) of a domain that grows: its size from this draw on.")
      .def(
          "set_batch_sizes",
          [](BatchPlanner& planner, const std::vector<std::pair<UInt64<"first_step">, UInt64<"batch_size">>>& pairs) {
            std::vector<BatchSize> sizes;
            for (const auto& [first_step, size] : pairs) sizes.push_back({first_step, size});
            planner.set_batch_sizes(sizes);
          },
          "sizes"_a, "Take pairs (first_step, batch_size) of batches whose size changes.")
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
