// SPDX-License-Identifier: GPL-2.0-only
//
// The comparator of the table rows: what one would write in C++ for the same job. An unordered_map from the 32-byte
// key (hashed by FNV-1a-32, as the protocol wants it) to the holders, striped into 256 maps with a mutex each.
//
//   map RESOURCES RESIDENT THREADS PAIRS   prints nanoseconds per lock+unlock pair: wall time, CPU time
//
// RESIDENT 1: every resource has a lock already, a pair adds a second one and takes it away.
// Weakness: no queues, no modes but a shared one, no answers: it does less than a lock table must.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <unordered_map>
#include <vector>

struct Key {
	uint64_t volume, ino, offset;
	uint32_t ag, type;
	bool operator==(const Key &other) const { return std::memcmp(this, &other, sizeof(Key)) == 0; }
};

static uint32_t hash_of(const Key &key)
{
	uint32_t hash = 0x811c9dc5u;
	const auto *bytes = reinterpret_cast<const unsigned char *>(&key);
	for (size_t i = 0; i < sizeof(Key); i++)
		hash = (hash ^ bytes[i]) * 0x01000193u;
	return hash;
}

struct Hashed {
	Key key;
	uint32_t hash;
	bool operator==(const Hashed &other) const { return key == other.key; }
};
struct Carry {
	size_t operator()(const Hashed &hashed) const { return hashed.hash; }
};
struct Holder {
	uint64_t id;
	uint32_t node, mode;
};
struct alignas(64) Stripe {
	std::mutex mutex;
	std::unordered_map<Hashed, std::vector<Holder>, Carry> map;
};

static constexpr size_t STRIPES = 256;
static std::unique_ptr<Stripe[]> table(new Stripe[STRIPES]);

static void lock(uint64_t ino, uint64_t id)
{
	Hashed hashed{{77, ino, 0, 0, 4}, 0};
	hashed.hash = hash_of(hashed.key);
	Stripe &stripe = table[(hashed.hash >> 20) % STRIPES];
	std::lock_guard<std::mutex> guard(stripe.mutex);
	stripe.map[hashed].push_back({id, 1, 3});
}

static void unlock(uint64_t ino, uint64_t id)
{
	Hashed hashed{{77, ino, 0, 0, 4}, 0};
	hashed.hash = hash_of(hashed.key);
	Stripe &stripe = table[(hashed.hash >> 20) % STRIPES];
	std::lock_guard<std::mutex> guard(stripe.mutex);
	auto found = stripe.map.find(hashed);
	if (found == stripe.map.end())
		std::abort();
	auto &holders = found->second;
	for (size_t i = 0; i < holders.size(); i++) {
		if (holders[i].id != id)
			continue;
		holders.erase(holders.begin() + static_cast<long>(i));
		if (holders.empty())
			stripe.map.erase(found);
		return;
	}
	std::abort();
}

int main(int argc, char **argv)
{
	if (argc != 5)
		return 2;
	const uint64_t resources = std::strtoull(argv[1], nullptr, 10);
	const bool resident = std::atoi(argv[2]) != 0;
	const unsigned threads = static_cast<unsigned>(std::atoi(argv[3]));
	const uint64_t pairs = std::strtoull(argv[4], nullptr, 10);
	for (size_t i = 0; i < STRIPES; i++)
		table[i].map.reserve(resources / STRIPES + 1);
	if (resident)
		for (uint64_t ino = 0; ino < resources; ino++)
			lock(ino, ino);
	const auto work = [&](unsigned thread) {
		// Each thread has its own share of the resources.
		const uint64_t share = resources / threads, first = share * thread;
		std::mt19937 random(thread + 1);
		std::vector<uint64_t> order(1 << 16);
		for (auto &ino : order)
			ino = first + random() % share;
		for (uint64_t i = 0; i < pairs; i++) {
			const uint64_t ino = order[i & 0xffff], id = (uint64_t(thread + 1) << 48) + i;
			lock(ino, id);
			unlock(ino, id);
		}
	};
	const std::clock_t cpu = std::clock();
	const auto began = std::chrono::steady_clock::now();
	std::vector<std::thread> all;
	for (unsigned thread = 0; thread < threads; thread++)
		all.emplace_back(work, thread);
	for (auto &each : all)
		each.join();
	const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - began;
	const double used = static_cast<double>(std::clock() - cpu) / CLOCKS_PER_SEC * 1e9;
	const double total = static_cast<double>(pairs * threads);
	std::printf("%.2f %.2f\n", took.count() / total, used / total);
}
