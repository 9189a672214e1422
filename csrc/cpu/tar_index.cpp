#include "pycooldown/tar_index.h"

#include <cerrno>
#include <stdexcept>
#include <system_error>

#include "tar_index_file.h"

namespace pycooldown {

using namespace index_file;

namespace {

std::uint64_t place(std::string_view section, const ShardRow& row, std::uint64_t i) {
  return row.place_bytes == 4 ? load<std::uint32_t>(section.data() + 4 * i)
                              : load<std::uint64_t>(section.data() + 8 * i);
}

}  // namespace

std::shared_ptr<TarIndex> TarIndex::parse(std::string bytes) {
  std::shared_ptr<TarIndex> index(new TarIndex);
  index->owned_ = std::move(bytes);
  index->bytes_ = index->owned_;
  return index->open() ? index : nullptr;
}

std::shared_ptr<TarIndex> TarIndex::map(const std::string& path) {
  std::shared_ptr<TarIndex> index(new TarIndex);
  index->path_ = path;
  index->file_ = std::make_unique<MappedFile>(path);
  index->bytes_ = {index->file_->data(), index->file_->size()};
  return index->guarded([&] { return index->open(); }) ? index : nullptr;
}

void TarIndex::require(bool condition) const {
  if (condition) return;
  check_file();  // a changed file is the more useful error
  throw std::invalid_argument((path_.empty() ? "" : path_ + ": ") + "the index is damaged");
}

const Header& TarIndex::header() const { return *reinterpret_cast<const Header*>(bytes_.data()); }

template <class Row>
Row TarIndex::entry(std::uint64_t rows_at, std::uint32_t number) const {
  return load<Row>(bytes_.data() + header().directory + rows_at + number * sizeof(Row));
}

ShardRow TarIndex::row(std::uint32_t shard) const { return entry<ShardRow>(0, shard); }

namespace {

std::uint64_t domains_at(const Header& header) { return header.num_shards * sizeof(ShardRow); }
std::uint64_t tables_at(const Header& header) { return domains_at(header) + header.num_domains * sizeof(DomainRow); }
std::uint64_t faults_at(const Header& header) { return tables_at(header) + header.num_tables * sizeof(TableRow); }
std::uint64_t texts_at(const Header& header) { return faults_at(header) + header.num_faults * sizeof(FaultRow); }

}  // namespace

bool TarIndex::open() {
  if (!bytes_.starts_with(std::string_view(kMagic, sizeof kMagic))) return false;
  require(bytes_.size() >= sizeof(Header));
  const Header& head = header();
  require(head.checksum == checksum(bytes_.substr(0, sizeof(Header) - 8)));
  require(head.directory >= sizeof(Header) && head.directory <= bytes_.size());
  require(head.directory_size == bytes_.size() - head.directory && texts_at(head) <= head.directory_size);
  require(head.num_shards > 0 && head.num_domains > 0);
  const std::string_view directory = bytes_.substr(head.directory);
  require(head.directory_checksum == checksum(directory));
  texts_ = directory.substr(texts_at(head));
  open_directory();
  return true;
}

// A file from another source may carry correct checksums, so reads out of bounds are checked separately.
void TarIndex::open_directory() {
  const Header& head = header();
  for (std::uint32_t t = 0; t < head.num_tables; ++t) tables_.push_back(parse_table(table_text(t)));
  std::uint64_t first = 0;
  require(row(0).first_sample == 0);
  require(row(0).size == head.shard_size && row(0).mtime_ns == head.shard_mtime_ns);
  for (std::uint32_t s = 0; s < head.num_shards; ++s) {
    const ShardRow shard = row(s);
    const std::uint64_t next = s + 1 < head.num_shards ? row(s + 1).first_sample : head.num_samples;
    require(first <= next);
    const std::uint64_t samples = next - first;
    require(shard.place_bytes == 4 || shard.place_bytes == 8);
    require(shard.section >= sizeof(Header) && shard.section <= head.directory);
    require(shard.section_size <= head.directory - shard.section);
    require(samples < shard.section_size / shard.place_bytes);
    require(shard.table < head.num_tables);
    text(shard.path, std::uint64_t{shard.path_size} + shard.version_size);
    first = next;
  }
  std::uint32_t first_of_domain = 0;
  for (std::uint32_t d = 0; d < head.num_domains; ++d) {
    const auto domain_row = entry<DomainRow>(domains_at(head), d);
    require(d > 0 || domain_row.first_shard == 0);
    require(first_of_domain <= domain_row.first_shard && domain_row.first_shard <= head.num_shards);
    first_of_domain = domain_row.first_shard;
    domain(d);
  }
  for (std::uint32_t f = 0; f < head.num_faults; ++f) require(fault(f).first < head.num_shards);
}

TarIndex::Table TarIndex::parse_table(std::string_view content) const {
  Table table;
  Cursor cursor{content};
  for (std::uint64_t left = cursor.varint(); left > 0 && !cursor.bad; --left)
    table.extensions.emplace_back(cursor.take(cursor.varint()));
  for (std::uint64_t left = cursor.varint(); left > 0 && !cursor.bad; --left) {
    auto& layout = table.layouts.emplace_back();
    for (std::uint64_t members = cursor.varint(); members > 0 && !cursor.bad; --members) {
      const std::uint64_t extension = cursor.varint(), gap = cursor.varint();
      require(extension < table.extensions.size() && gap >> 32 == 0);
      layout.push_back({static_cast<std::uint32_t>(extension), static_cast<std::uint32_t>(gap)});
    }
  }
  require(!cursor.bad && cursor.rest.empty());
  return table;
}

std::string_view TarIndex::text(std::uint64_t position, std::uint64_t size) const {
  require(position <= texts_.size() && size <= texts_.size() - position);
  return texts_.substr(position, size);
}

std::string_view TarIndex::table_text(std::uint32_t table) const {
  const auto place = entry<TableRow>(tables_at(header()), table);
  return text(place.text, place.size);
}

std::uint32_t TarIndex::num_shards() const { return header().num_shards; }
std::uint64_t TarIndex::num_samples() const { return header().num_samples; }
std::uint64_t TarIndex::first_sample(std::uint32_t shard) const {
  return shard < num_shards() ? row(shard).first_sample : num_samples();
}
std::uint64_t TarIndex::shard_size(std::uint32_t shard) const { return row(shard).size; }
std::int64_t TarIndex::shard_mtime_ns(std::uint32_t shard) const { return row(shard).mtime_ns; }
std::string_view TarIndex::path(std::uint32_t shard) const { return text(row(shard).path, row(shard).path_size); }
std::string_view TarIndex::version(std::uint32_t shard) const {
  return text(row(shard).path + row(shard).path_size, row(shard).version_size);
}
std::uint32_t TarIndex::table(std::uint32_t shard) const { return row(shard).table; }

std::uint32_t TarIndex::num_domains() const { return header().num_domains; }
std::string_view TarIndex::domain(std::uint32_t domain) const {
  const auto place = entry<DomainRow>(domains_at(header()), domain);
  return text(place.name, place.name_size);
}
std::uint32_t TarIndex::first_shard(std::uint32_t domain) const {
  return domain < num_domains() ? entry<DomainRow>(domains_at(header()), domain).first_shard : num_shards();
}

std::uint32_t TarIndex::num_faults() const { return header().num_faults; }
std::pair<std::uint32_t, TarFault> TarIndex::fault(std::uint32_t number) const {
  const auto place = entry<FaultRow>(faults_at(header()), number);
  return {place.shard, {place.offset, std::string(text(place.what, place.what_size))}};
}

std::string_view TarIndex::section(const ShardRow& shard) const {
  return bytes_.substr(shard.section, shard.section_size);
}

std::string_view TarIndex::record(std::uint32_t number, const ShardRow& shard, std::uint64_t i) const {
  const std::string_view all = section(shard);
  const std::uint64_t samples = first_sample(number + 1) - shard.first_sample;
  const std::string_view records = all.substr((samples + 1) * shard.place_bytes);
  const std::uint64_t begin = place(all, shard, i), end = place(all, shard, i + 1);
  require(begin <= end && end <= records.size());
  return records.substr(begin, end - begin);
}

void TarIndex::get(std::uint32_t number, std::uint64_t i, TarSample& out) const {
  const ShardRow shard = row(number);
  const std::string_view bytes = record(number, shard, i);
  require(bytes.size() > 6);
  const std::string_view checked = bytes.substr(0, bytes.size() - 2);
  require(load<std::uint16_t>(bytes.data() + checked.size()) == record_checksum(checked, i));
  std::uint64_t offset = kBlock * load<std::uint32_t>(checked.data()), end = 0;
  Cursor cursor{checked.substr(4)};
  const std::uint64_t layout = cursor.varint();
  const Table& table = tables_[shard.table];
  require(layout < table.layouts.size());
  out.members.clear();
  for (const Layout& member : table.layouts[layout]) {
    if (!out.members.empty()) offset = end + kBlock * member.gap;
    const std::uint64_t size = cursor.varint();
    require(offset <= shard.size && size <= shard.size - offset);
    out.members.push_back({offset, size, member.extension});
    end = offset + (size + kBlock - 1) / kBlock * kBlock;
  }
  require(!cursor.bad);
  out.key = cursor.rest;
}

void TarIndex::verify(std::uint32_t shard) const {
  require(row(shard).section_checksum == checksum(section(row(shard))));
  TarSample sample;
  for (std::uint64_t i = 0; i < num_samples(shard); ++i) get(shard, i, sample);
}

void TarIndex::check_file() const {
  if (file_ && file_->has_changed(path_))
    throw std::system_error(ESTALE, std::generic_category(), path_ + " has changed since it was opened; open it again");
  require_pages();
}

void TarIndex::require_pages() const {
  if (file_ && file_->mapped()->lost)
    throw std::system_error(EIO, std::generic_category(),
                            path_ + " was truncated while it was mapped, or its disk fails; open it again");
}

std::uint64_t TarIndex::fingerprint(std::uint32_t shard, const ReadAt& read) const {
  constexpr std::uint64_t kProbes = 16;
  const std::uint64_t samples = num_samples(shard), probes = std::min(kProbes, samples);
  std::uint64_t hash = 0;
  char bytes[2 * kBlock];
  TarSample sample;
  for (std::uint64_t p = 0; p < probes; ++p) {
    get(shard, probes == 1 ? 0 : p * (samples - 1) / (probes - 1), sample);
    if (sample.members.empty()) continue;
    const std::uint64_t start = std::max(sample.members[0].offset, kBlock) - kBlock;
    const std::size_t found = read(start, bytes, std::min<std::uint64_t>(sizeof bytes, shard_size(shard) - start));
    hash = checksum({bytes, found}, hash);
  }
  return probes > 0 && hash == 0 ? 1 : hash;
}

bool TarIndex::has_fingerprint(std::uint32_t shard, const ReadAt& read) const {
  return row(shard).fingerprint == 0 || row(shard).fingerprint == fingerprint(shard, read);
}

void TarIndex::prefetch_place(std::uint32_t shard, std::uint64_t i) const {
  const ShardRow place = row(shard);
  __builtin_prefetch(bytes_.data() + place.section + i * place.place_bytes);
}

void TarIndex::prefetch_record(std::uint32_t shard, std::uint64_t i) const {
  __builtin_prefetch(record(shard, row(shard), i).data());
}

std::uint64_t TarIndex::first_offset(std::uint32_t shard, std::uint64_t i) const {
  const std::string_view bytes = record(shard, row(shard), i);
  require(bytes.size() > 6);
  return kBlock * load<std::uint32_t>(bytes.data());
}

}  // namespace pycooldown
