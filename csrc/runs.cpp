#include "runs.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace maskpipe {

void Runs::push(std::int32_t end, std::uint8_t role, std::uint8_t part, std::uint8_t flag, std::int32_t message) {
  ends.push_back(end);
  roles.push_back(role);
  parts.push_back(part);
  flags.push_back(flag);
  messages.push_back(message);
}

void check_offsets(std::span<const std::int64_t> offsets, std::size_t size, const std::string& name) {
  if (offsets.empty() || offsets.front() != 0) throw std::invalid_argument(name + " must start with 0");
  for (std::size_t i = 1; i < offsets.size(); ++i) {
    if (offsets[i] < offsets[i - 1]) {
      throw std::invalid_argument(name + "[" + std::to_string(i) + "] is " + std::to_string(offsets[i]) +
                                  ", less than the one before it, " + std::to_string(offsets[i - 1]));
    }
  }
  if (offsets.back() != static_cast<std::int64_t>(size)) {
    throw std::invalid_argument(name + " ends with " + std::to_string(offsets.back()) + ", but there are " +
                                std::to_string(size) + " values");
  }
}

void check_shapes(const RunsView& runs, const std::string& offsets_name) {
  const std::size_t size = runs.ends.size();
  if (runs.roles.size() != size || runs.parts.size() != size || runs.flags.size() != size ||
      runs.messages.size() != size) {
    throw std::invalid_argument("run arrays must have one length, got run_ends " + std::to_string(size) +
                                ", run_roles " + std::to_string(runs.roles.size()) + ", run_parts " +
                                std::to_string(runs.parts.size()) + ", run_flags " + std::to_string(runs.flags.size()) +
                                ", run_messages " + std::to_string(runs.messages.size()));
  }
  check_offsets(runs.offsets, size, offsets_name);
}

void check_tiling(std::span<const std::int32_t> ends, std::int64_t first, std::int64_t last, std::int64_t length,
                  std::int64_t group) {
  std::int64_t previous = 0;
  for (std::int64_t run = first; run < last; ++run) {
    const std::int64_t end = ends[static_cast<std::size_t>(run)];
    if (end <= previous || end > length) {
      throw std::invalid_argument("run_ends[" + std::to_string(run) + "] is " + std::to_string(end) + " in group " +
                                  std::to_string(group) + "; it must be above " + std::to_string(previous) +
                                  " and at most the length " + std::to_string(length));
    }
    previous = end;
  }
  if (previous != length) {
    throw std::invalid_argument("the runs of group " + std::to_string(group) + " end at " + std::to_string(previous) +
                                ", but its length is " + std::to_string(length));
  }
}

Runs encode_runs(std::span<const std::uint8_t> roles, std::span<const std::uint8_t> parts,
                 std::span<const std::uint8_t> flags, std::span<const std::int32_t> messages,
                 std::span<const std::int64_t> offsets) {
  if (parts.size() != roles.size() || flags.size() != roles.size() || messages.size() != roles.size()) {
    throw std::invalid_argument("roles, parts, flags and messages must have one length, got " +
                                std::to_string(roles.size()) + ", " + std::to_string(parts.size()) + ", " +
                                std::to_string(flags.size()) + ", " + std::to_string(messages.size()));
  }
  check_offsets(offsets, roles.size(), "offsets");
  Runs runs;
  runs.offsets.reserve(offsets.size());
  runs.offsets.push_back(0);
  for (std::size_t document = 0; document + 1 < offsets.size(); ++document) {
    if (offsets[document + 1] - offsets[document] > std::numeric_limits<std::int32_t>::max()) {
      throw std::invalid_argument("document " + std::to_string(document) + " has more than 2147483647 tokens");
    }
    const auto start = static_cast<std::size_t>(offsets[document]);
    const auto stop = static_cast<std::size_t>(offsets[document + 1]);
    for (std::size_t first = start; first < stop;) {
      std::size_t end = first + 1;
      while (end < stop && roles[end] == roles[first] && parts[end] == parts[first] && flags[end] == flags[first] &&
             messages[end] == messages[first]) {
        ++end;
      }
      runs.push(static_cast<std::int32_t>(end - start), roles[first], parts[first], flags[first], messages[first]);
      first = end;
    }
    runs.offsets.push_back(static_cast<std::int64_t>(runs.ends.size()));
  }
  return runs;
}

template <typename Value>
std::vector<Value> expand_runs(std::span<const std::int32_t> ends, std::span<const Value> values,
                               std::span<const std::int64_t> offsets, std::span<const std::int64_t> lengths) {
  if (values.size() != ends.size()) {
    throw std::invalid_argument("run_ends and values must have one length, got " + std::to_string(ends.size()) +
                                " and " + std::to_string(values.size()));
  }
  check_offsets(offsets, ends.size(), "run_offsets");
  const std::size_t groups = offsets.size() - 1;
  if (lengths.size() != groups && lengths.size() != 1) {
    throw std::invalid_argument("lengths must hold one length, or one for each of the " + std::to_string(groups) +
                                " groups, got " + std::to_string(lengths.size()));
  }
  const auto length_of = [&](std::size_t group) { return lengths[lengths.size() == 1 ? 0 : group]; };
  std::int64_t total = 0;
  for (std::size_t group = 0; group < groups; ++group) {
    check_tiling(ends, offsets[group], offsets[group + 1], length_of(group), static_cast<std::int64_t>(group));
    total += length_of(group);
  }
  std::vector<Value> dense(static_cast<std::size_t>(total));
  auto group_start = dense.begin();
  for (std::size_t group = 0; group < groups; ++group) {
    auto token = group_start;
    for (auto run = static_cast<std::size_t>(offsets[group]); run < static_cast<std::size_t>(offsets[group + 1]);
         ++run) {
      const auto end = group_start + ends[run];
      std::fill(token, end, values[run]);
      token = end;
    }
    group_start = token;
  }
  return dense;
}

template std::vector<std::uint8_t> expand_runs(std::span<const std::int32_t>, std::span<const std::uint8_t>,
                                               std::span<const std::int64_t>, std::span<const std::int64_t>);
template std::vector<std::int32_t> expand_runs(std::span<const std::int32_t>, std::span<const std::int32_t>,
                                               std::span<const std::int64_t>, std::span<const std::int64_t>);

}  // namespace maskpipe
