// The bindings of random numbers, permutations and draws.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>

#include "arrays.h"
#include "integers.h"
#include "pycooldown/alias_table.h"
#include "pycooldown/block_order.h"
#include "pycooldown/device_draw.h"
#include "pycooldown/permutation.h"
#include "signal_check.h"
#ifdef PYCOOLDOWN_CUDA
#include "alias_draw.h"
#endif

namespace py = pybind11;
using namespace py::literals;

namespace pycooldown {

namespace {

// Draws in pieces and checks for signals between them.
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

void register_permutations(py::module_& m) {
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
  m.def(
      "block_permutation",
      [](const Input<std::int64_t>& shard_sizes, UInt64<"block"> block, UInt64<"group"> group, UInt64<"seed"> seed,
         Integer<"domain", std::uint32_t> domain, UInt64<"epoch"> epoch) {
        const BlockLayout layout(view(shard_sizes), block, group);
        py::array_t<std::int64_t> out(static_cast<py::ssize_t>(layout.size()));
        auto values = view(out);
        py::gil_scoped_release release;
        BlockOrder order(layout, seed, epoch, domain);
        SignalCheck check_signals;
        for (std::size_t i = 0; i < values.size();) {
          for (const Permutation places = order.enter(i); i < values.size() && order.holds(i); ++i)
            values[i] = static_cast<std::int64_t>(order.sample(places(i - order.begin())));
          check_signals(20 * block * group);
        }
        return out;
      },
      "shard_sizes"_a, py::kw_only(), "block"_a, "group"_a, "seed"_a, "domain"_a = 0, "epoch"_a = 0,
      "Return the order of a domain's samples in an epoch, shuffled by blocks.");
}

}  // namespace

void register_random(py::module_& m) {
  register_permutations(m);
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
}

}  // namespace pycooldown
