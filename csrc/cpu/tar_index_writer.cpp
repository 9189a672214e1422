#include "pycooldown/tar_index_writer.h"

#include <limits>
#include <stdexcept>

#include "tar_index_file.h"

namespace pycooldown {

using namespace index_file;

static_assert(TarIndexWriter::kHeaderSize == sizeof(Header));

namespace {

template <class T>
T narrow(std::uint64_t value) {
  if (value > std::numeric_limits<T>::max()) throw std::length_error("an index cannot hold as much");
  return static_cast<T>(value);
}

}  // namespace

std::uint64_t TarIndexWriter::add_text(std::string_view text) {
  const std::uint64_t position = texts_.size();
  texts_.append(text);
  return position;
}

void TarIndexWriter::begin_domain(std::string_view name) {
  put(domains_, DomainRow{add_text(name), narrow<std::uint32_t>(name.size()), num_shards_});
  ++num_domains_;
}

void TarIndexWriter::add_fault(const TarFault& fault) {
  put(faults_, FaultRow{fault.offset, add_text(fault.what), narrow<std::uint32_t>(fault.what.size()), num_shards_});
  ++num_faults_;
}

void TarIndexWriter::add_row(const Part& part, std::string_view section, std::string_view table, std::string_view path,
                             std::string_view version) {
  const auto [entry, is_new] = tables_.try_emplace(std::string(table), narrow<std::uint32_t>(tables_.size()));
  if (is_new) put(table_rows_, TableRow{add_text(table), table.size()});
  const std::uint64_t place = add_text(path);
  add_text(version);
  put(shards_, ShardRow{part.size, part.mtime_ns, part.fingerprint, num_samples_, position_, section.size(),
                        part.section_checksum, place, narrow<std::uint32_t>(path.size()),
                        narrow<std::uint32_t>(version.size()), entry->second, part.place_bytes});
  if (num_shards_ == 0) first_size_ = part.size, first_mtime_ns_ = part.mtime_ns;
  num_shards_ = narrow<std::uint32_t>(std::uint64_t{num_shards_} + 1);
  num_samples_ += part.num_samples;
  position_ += section.size();
}

std::string_view TarIndexWriter::add(const TarIndex& source, std::uint32_t shard, std::string_view path,
                                     std::string_view version) {
  const ShardRow row = source.row(shard);
  const std::string_view section = source.section(row);
  source.require(row.section_checksum == checksum(section));
  for (std::uint32_t f = 0; f < source.num_faults(); ++f)
    if (const auto [of, fault] = source.fault(f); of == shard) add_fault(fault);
  add_row({row.size, row.mtime_ns, row.fingerprint, source.num_samples(shard), row.section_checksum, row.place_bytes},
          section, source.table_text(row.table), path, version);
  return section;
}

std::pair<std::string, std::string> TarIndexWriter::finish() {
  const std::string directory = shards_ + domains_ + table_rows_ + faults_ + texts_;
  Header header{{},
                first_size_,
                first_mtime_ns_,
                num_samples_,
                num_shards_,
                num_domains_,
                narrow<std::uint32_t>(tables_.size()),
                num_faults_,
                position_,
                directory.size(),
                checksum(directory),
                0};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  std::string head;
  put(head, header);
  header.checksum = checksum(std::string_view(head).substr(0, sizeof(Header) - 8));
  head.clear();
  put(head, header);
  return {directory, head};
}

void TarShardBuilder::add_sample(std::string_view key, const std::vector<TarMember>& members) {
  std::string layout;
  put_varint(layout, members.size());
  std::uint64_t end = members.empty() ? 0 : members[0].offset;
  for (const TarMember& member : members) {
    put_varint(layout, member.extension);
    put_varint(layout, (member.offset - end) / kBlock);
    end = member.offset + (member.size + kBlock - 1) / kBlock * kBlock;
  }
  const auto [entry, is_new] = layout_ids_.try_emplace(layout, narrow<std::uint32_t>(layout_ids_.size()));
  if (is_new) layouts_ += layout;

  std::string record;
  put(record, narrow<std::uint32_t>(members.empty() ? 0 : members[0].offset / kBlock));
  put_varint(record, entry->second);
  for (const TarMember& member : members) put_varint(record, member.size);
  record += key;
  put(record, record_checksum(record, places_.size()));
  places_.push_back(records_.size());
  records_ += record;
}

std::string TarShardBuilder::to_bytes(std::uint64_t fingerprint) const {
  const std::uint32_t width = records_.size() > std::numeric_limits<std::uint32_t>::max() ? 8 : 4;
  std::string section, table;
  section.reserve((places_.size() + 1) * width + records_.size());
  const auto put_place = [&](std::uint64_t place) { section.append(reinterpret_cast<const char*>(&place), width); };
  for (std::uint64_t place : places_) put_place(place);
  put_place(records_.size());
  section += records_;

  put_varint(table, extensions_.size());
  for (const std::string& extension : extensions_) {
    put_varint(table, extension.size());
    table += extension;
  }
  put_varint(table, layout_ids_.size());
  table += layouts_;

  TarIndexWriter writer;
  writer.begin_domain("");
  for (const TarFault& fault : faults_) writer.add_fault(fault);
  writer.add_row({shard_size_, shard_mtime_ns_, fingerprint, places_.size(), checksum(section), width}, section, table,
                 "", "");
  const auto [directory, header] = writer.finish();
  return header + section + directory;
}

std::shared_ptr<TarIndex> TarShardBuilder::finish(const ReadAt* read) const {
  auto index = TarIndex::parse(to_bytes(0));
  if (!read) return index;
  const std::uint64_t fingerprint = index->fingerprint(0, *read);
  return TarIndex::parse(to_bytes(fingerprint));
}

}  // namespace pycooldown
