// The random bits of a key, by the hash of minivit/random.py.
#pragma once

__device__ __forceinline__ unsigned mixed(unsigned h) {
  h ^= h >> 16;
  h *= 0x21F0AAADu;
  h ^= h >> 15;
  h *= 0xD35A2D97u;
  h ^= h >> 15;
  return h;
}

// first and second are the two words of the key's seed, step and place.
__device__ __forceinline__ unsigned random_bits(unsigned sample, unsigned first, unsigned second, unsigned index) {
  const unsigned s1 = mixed(sample ^ first), s2 = mixed(s1 ^ second);
  unsigned h = (index * 0x9E3779B9u) ^ s1;
  h ^= h >> 16;
  h *= 0x21F0AAADu;
  h ^= h >> 15;
  h += s2;
  h *= 0xD35A2D97u;
  h ^= h >> 15;
  return h;
}
