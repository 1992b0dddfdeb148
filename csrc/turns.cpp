#include "turns.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "runs.h"

namespace maskpipe {

namespace {

struct Match {
  std::int64_t joint = -1;
  std::int64_t matched = 0;  // ids of it that are there
};

class Locator {
 public:
  Locator(std::span<const std::int32_t> ids, const Joints& joints, const TokenKinds& kinds, std::int32_t bos,
          std::span<const std::int32_t> empty, std::span<const std::int64_t> empty_offsets, Located& out)
      : ids_(ids), joints_(joints), kinds_(kinds), bos_(bos), empty_(empty), empty_offsets_(empty_offsets), out_(out) {
    for (std::size_t j = 0; j < joints.from.size(); ++j) by_role_[joints.from[j]].push_back(std::int64_t(j));
  }

  void document(std::size_t number, std::int64_t begin, std::int64_t end) {
    number_ = std::int64_t(number);
    end_ = end;
    std::int64_t at = begin;
    while (bos_ >= 0 && at < end && ids_[at] == bos_) ++at;
    out_.bos[number] = std::int32_t(at - begin);
    mark(begin, at, kTemplateRole, kJoint);
    turn_ = -1;
    Match found = match(kJointStart, at);
    if (found.joint < 0) {  // the rest of something: its first turn that is certain
      const std::int64_t first = at;
      while (at < end && !(control(at) && (found = match(kJointAny, at)).joint >= 0)) ++at;
      for (std::int64_t i = first; i < at; ++i) out_.roles[i] = kUnknownRole;
    } else {
      out_.from_start[number] = 1;
    }
    if (found.joint < 0) {
      for (std::int64_t i = begin; i < at; ++i) out_.roles[i] = kUnknownRole, out_.marks[i] = 0;
      return;
    }
    at = take(found, at);
    out_.states[number] = contents(at);
    close(end);
  }

 private:
  // Content after content, up to the end of the document; its state.
  std::uint8_t contents(std::int64_t at) {
    bool ended = false;  // a stop token stood where no joint follows: what comes before the next joint is not claimed
    while (at < end_) {
      if (!control(at)) {
        const std::int64_t first = at;
        while (++at < end_ && !control(at)) {
        }
        contents_of(first, at, ended ? kOpen : 0);
        continue;
      }
      Match found = match(role_, at);
      if (found.joint >= 0 && joints_.to[found.joint] == kJointEnd) {
        const std::uint8_t state = found.matched < length(found.joint) ? kTailMissing : kWhole;
        finish(found, at);
        return state;
      }
      if (found.joint < 0 && (found = match_rest(at)).joint >= 0) {
        finish(found, at);
        return kMore;
      }
      if (found.joint >= 0) {
        at = take(found, at);
        ended = false;
        continue;
      }
      if (const std::int64_t partial = match_cut(at); partial >= 0) {
        finish({partial, end_ - at}, at);
        return kCut;
      }
      if (const std::int64_t beginning = match_beginning(at); beginning >= 0) {
        at = beginning;
        ended = false;
        continue;
      }
      found = match(kJointAny, at);
      if (found.joint >= 0) {
        out_.openings.push_back(at);
        close(at);
        at = take(found, at);
        ended = false;
        continue;
      }
      const bool allowed = role_ <= kTemplateRole && (kinds_.allowed[ids_[at]] >> role_ & 1);
      content(at, allowed ? 0 : kStray);
      if (!allowed && role_ == kAssistantRole && kinds_.control[ids_[at]] == 2) ended = true;
      ++at;
    }
    return kCut;
  }

  bool control(std::int64_t at) const {
    const std::int32_t id = ids_[at];
    return id >= 0 && std::size_t(id) < kinds_.control.size() && kinds_.control[id];
  }

  std::int64_t length(std::int64_t joint) const { return joints_.offsets[joint + 1] - joints_.offsets[joint]; }
  std::int32_t joint_id(std::int64_t joint, std::int64_t k) const { return joints_.ids[joints_.offsets[joint] + k]; }

  std::int64_t common(std::int64_t joint, std::int64_t at) const {
    std::int64_t k = 0;
    while (k < length(joint) && at + k < end_ && joint_id(joint, k) == ids_[at + k]) ++k;
    return k;
  }

  // The longest joint out of a role that stands at a place; one that ends the document must reach its end.
  Match match(std::uint8_t from, std::int64_t at) const {
    Match best;
    for (const std::int64_t joint : by_role_[from]) {
      const std::int64_t k = common(joint, at);
      if (k < joints_.needed[joint] || (joints_.to[joint] == kJointEnd && at + k != end_)) continue;
      if (best.joint < 0 || k > best.matched) best = {joint, k};
    }
    return best;
  }

  // A joint of the end with nothing behind it but tokens that end texts.
  Match match_rest(std::int64_t at) const {
    for (const std::int64_t joint : by_role_[role_]) {
      const std::int64_t k = common(joint, at);
      if (joints_.to[joint] != kJointEnd || k < joints_.needed[joint] || at + k == end_) continue;
      std::int64_t rest = at + k;
      while (rest < end_ && control(rest) && kinds_.control[ids_[rest]] == 2) ++rest;
      if (rest == end_) return {joint, k};
    }
    return {};
  }

  // A joint that the end of the document cuts; -1 for none.
  std::int64_t match_cut(std::int64_t at) const {
    for (const std::int64_t joint : by_role_[role_]) {
      if (joints_.to[joint] != kJointEnd && common(joint, at) == end_ - at) return joint;
    }
    return -1;
  }

  // A joint of the end and one of the beginning behind it, or the latter alone where it begins with BOS: where content
  // goes on after them; -1 for none.
  std::int64_t match_beginning(std::int64_t at) {
    std::int64_t next = at;
    std::int64_t closing = -1;
    if (bos_ < 0) return match_joined(at);
    for (const std::int64_t joint : by_role_[role_]) {
      if (joints_.to[joint] != kJointEnd) continue;
      const std::int64_t k = common(joint, at);
      if (k >= joints_.needed[joint] && at + k < end_ && ids_[at + k] == bos_) {
        closing = joint;
        next = at + k;
        break;
      }
    }
    if (ids_[next] != bos_) return -1;
    std::int64_t after = next;
    while (after < end_ && ids_[after] == bos_) ++after;
    const Match start = match(kJointStart, after);
    if (start.joint < 0) return -1;
    if (closing >= 0) write(closing, next - at, at);
    close(next);
    out_.beginnings.push_back(next);
    mark(next, after, kTemplateRole, kJoint);
    return take(start, after);
  }

  // Without BOS: a joint of the end without the white space behind it, and a joint of the beginning right there.
  std::int64_t match_joined(std::int64_t at) {
    for (const std::int64_t joint : by_role_[role_]) {
      const std::int64_t k = common(joint, at);
      if (joints_.to[joint] != kJointEnd || k < joints_.needed[joint] || k == length(joint) || at + k == end_) continue;
      const Match start = match(kJointStart, at + k);
      if (start.joint < 0 || start.matched == 0) continue;
      write(joint, k, at);
      close(at + k);
      out_.beginnings.push_back(at + k);
      return take(start, at + k);
    }
    return -1;
  }

  void mark(std::int64_t begin, std::int64_t end, std::uint8_t role, std::uint8_t marks) {
    std::fill(out_.roles.begin() + begin, out_.roles.begin() + end, role);
    std::fill(out_.marks.begin() + begin, out_.marks.begin() + end, marks);
  }

  void content(std::int64_t at, std::uint8_t marks) { contents_of(at, at + 1, marks); }

  void contents_of(std::int64_t begin, std::int64_t end, std::uint8_t marks) {
    if (role_ == kAssistantRole && !(marks & kOpen)) marks |= kSampled;
    mark(begin, end, role_, marks);
  }

  void write(std::int64_t joint, std::int64_t matched, std::int64_t at) {
    const std::int64_t base = joints_.offsets[joint];
    for (std::int64_t k = 0; k < matched; ++k) {
      out_.roles[at + k] = joints_.roles[base + k];
      out_.marks[at + k] = joints_.marks[base + k] | kJoint;
      if (joints_.marks[base + k] & kStop) stop_ = at + k;
    }
  }

  void finish(const Match& found, std::int64_t at) {
    write(found.joint, found.matched, at);
    close(at);
    for (std::int64_t i = at + found.matched; i < end_; ++i) mark(i, i + 1, kTemplateRole, kStray);
  }

  // Writes the joint, ends the turn before it and begins the content behind it; where that goes on.
  std::int64_t take(const Match& found, std::int64_t at) {
    write(found.joint, found.matched, at);
    close(at);
    role_ = joints_.to[found.joint];
    std::int64_t next = at + found.matched;
    if (role_ == kAssistantRole) {
      turn_ = next;
      next = take_empty(next);
    }
    if (found.matched < length(found.joint) && next < end_ && next == at + found.matched) {
      content(next, 0);  // its white space went into the first token of the content
      out_.marks[next] |= kOpen;
      ++next;
    }
    return next;
  }

  std::int64_t take_empty(std::int64_t at) {
    for (std::size_t e = 0; e + 1 < empty_offsets_.size(); ++e) {
      const std::int64_t size = empty_offsets_[e + 1] - empty_offsets_[e];
      std::int64_t k = 0;
      while (k < size && at + k < end_ && ids_[at + k] == empty_[empty_offsets_[e] + k]) ++k;
      if (size > 0 && k == size) {
        mark(at, at + size, kAssistantRole, kSampled | kEmpty);
        return at + size;
      }
    }
    return at;
  }

  // The open assistant turn, whose content ends at `at`.
  void close(std::int64_t at) {
    if (turn_ >= 0) {
      const std::int64_t end = stop_ >= 0 ? stop_ + 1 : at;
      for (const std::int64_t value : {number_, turn_, end, stop_}) out_.turns.push_back(value);
    }
    turn_ = stop_ = -1;
  }

  std::span<const std::int32_t> ids_;
  const Joints& joints_;
  const TokenKinds& kinds_;
  std::int32_t bos_;
  std::span<const std::int32_t> empty_;
  std::span<const std::int64_t> empty_offsets_;
  Located& out_;
  std::vector<std::int64_t> by_role_[256];
  std::int64_t number_ = 0, end_ = 0, turn_ = -1, stop_ = -1;
  std::uint8_t role_ = kUnknownRole;
};

void check(std::span<const std::int32_t> ids, std::span<const std::int64_t> starts, std::span<const std::int64_t> ends,
           const Joints& joints, const TokenKinds& kinds, std::span<const std::int64_t> empty_offsets,
           std::size_t empty) {
  if (starts.size() != ends.size()) throw std::invalid_argument("starts and ends must have one length");
  std::int64_t last = 0;
  for (std::size_t d = 0; d < starts.size(); ++d) {
    if (starts[d] < last || ends[d] < starts[d] || ends[d] > std::int64_t(ids.size())) {
      throw std::invalid_argument("document " + std::to_string(d) + " is out of order or outside the ids");
    }
    last = ends[d];
  }
  check_offsets(joints.offsets, joints.ids.size(), "offsets");
  check_offsets(empty_offsets, empty, "empty_offsets");
  const std::size_t count = joints.offsets.size() - 1;
  if (joints.roles.size() != joints.ids.size() || joints.marks.size() != joints.ids.size()) {
    throw std::invalid_argument("roles and marks must have one value per id of the joints");
  }
  if (joints.from.size() != count || joints.to.size() != count || joints.needed.size() != count) {
    throw std::invalid_argument("from, to and needed must have one value per joint");
  }
  if (kinds.control.size() != kinds.allowed.size()) {
    throw std::invalid_argument("control and allowed must have one length");
  }
  for (std::size_t j = 0; j < count; ++j) {
    const std::int64_t length = joints.offsets[j + 1] - joints.offsets[j];
    const std::int64_t least = joints.from[j] == kJointStart ? 0 : 1;
    if (joints.needed[j] < least || joints.needed[j] > length) {
      throw std::invalid_argument("needed[" + std::to_string(j) + "] is " + std::to_string(joints.needed[j]) +
                                  "; it must be in [" + std::to_string(least) + ", " + std::to_string(length) + "]");
    }
  }
}

}  // namespace

Located locate_turns(std::span<const std::int32_t> ids, std::span<const std::int64_t> starts,
                     std::span<const std::int64_t> ends, const Joints& joints, const TokenKinds& kinds,
                     std::int32_t bos, std::span<const std::int32_t> empty,
                     std::span<const std::int64_t> empty_offsets) {
  check(ids, starts, ends, joints, kinds, empty_offsets, empty.size());
  Located out;
  out.roles.assign(ids.size(), kUnknownRole);
  out.marks.assign(ids.size(), 0);
  out.states.assign(starts.size(), kNotLocated);
  out.bos.assign(starts.size(), 0);
  out.from_start.assign(starts.size(), 0);
  Locator locator(ids, joints, kinds, bos, empty, empty_offsets, out);
  for (std::size_t d = 0; d < starts.size(); ++d) locator.document(d, starts[d], ends[d]);
  return out;
}

}  // namespace maskpipe
