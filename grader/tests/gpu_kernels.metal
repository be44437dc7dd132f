// The kernels that test_gpu_simulator.py runs: right ones, and one for each thing that the simulator reports. The line
// that a report must name ends in `// <- here`.

constexpr constant int TILE = 16;

template <typename T>
float dot_of(threadgroup const T* a, threadgroup const T* b, int stride) {
  float sum = 0;
  for (int k = 0; k < TILE; ++k) {
    sum += float(a[k]) * float(b[k * stride]);
  }
  return sum;
}

// ---- right ----

// A tiled product with two barriers a tile, tiles of the array's type, and a helper that takes pointers into them.
// cuda: T = float, half, bfloat
template <typename T>
kernel void tiled(
    const device T* a, const device T* b, device T* y, constant int& M, constant int& K, constant int& N) {
  threadgroup T a_tile[TILE][TILE];
  threadgroup T b_tile[TILE][TILE + 1];
  const int x = thread_position_in_threadgroup.x;
  const int z = thread_position_in_threadgroup.y;
  const int row = thread_position_in_grid.y;
  const int column = thread_position_in_grid.x;
  float sum = 0;
  for (int k = 0; k < K; k += TILE) {
    a_tile[z][x] = row < M && k + x < K ? a[row * K + k + x] : T(0);
    b_tile[z][x] = column < N && k + z < K ? b[(k + z) * N + column] : T(0);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    sum += dot_of<T>(a_tile[z], b_tile[0] + x, TILE + 1);
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  if (row < M && column < N) {
    y[row * N + column] = T(sum);
  }
}

// Sums of rows: four elements at a time, then over the SIMD-group, then over the SIMD-groups.
// cuda:
kernel void rows(const device float* x, device float* y, constant int& K) {
  threadgroup float part[2];
  const int row = threadgroup_position_in_grid.y;
  const device float4* mine = (const device float4*)(x + row * K);
  float4 sum = float4(0.0f);
  for (int k = thread_index_in_threadgroup; k < K / 4; k += 64) {
    sum += mine[k];
  }
  float all = simd_sum(sum.x + sum.y + sum.z + sum.w);
  if (thread_index_in_simdgroup == 0) {
    part[simdgroup_index_in_threadgroup] = all;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (thread_index_in_threadgroup == 0) {
    y[row] = part[0] + part[1];
  }
}

// What each SIMD operation gives to each lane.
// cuda: T = float, int, uint, half, bfloat
template <typename T>
kernel void lanes(const device T* x, device T* y) {
  const uint i = thread_index_in_simdgroup;
  T v = x[i];
  y[i] = simd_sum(v);
  y[32 + i] = simd_max(v);
  y[64 + i] = simd_min(v);
  y[96 + i] = simd_shuffle_xor(v, 5);
  y[128 + i] = simd_broadcast(v, 3);
  y[160 + i] = simd_shuffle(v, 31 - i);
  T down = simd_shuffle_down(v, 1);
  y[192 + i] = i < 31 ? down : T(0);
  T up = simd_shuffle_up(v, 1);
  y[224 + i] = i > 0 ? up : T(0);
}

// A sum by halves, in one SIMD-group: simdgroup_barrier is enough between its lanes.
// cuda:
kernel void halving(const device float* x, device float* y) {
  threadgroup float part[32];
  const int i = thread_index_in_simdgroup;
  part[i] = x[i];
  for (int step = 16; step > 0; step /= 2) {
    simdgroup_barrier(mem_flags::mem_threadgroup);
    float other = i < step ? part[i + step] : 0.0f;
    simdgroup_barrier(mem_flags::mem_threadgroup);
    part[i] += other;
  }
  if (i == 0) {
    y[0] = part[0];
  }
}

// Numbers of each kind, handed over at launch, and the template's.
// cuda: COUNT = 3; TWICE = true, false
template <int COUNT, bool TWICE>
kernel void numbers(device float* y, constant int& a, constant uint& b, constant float& c, constant bool& d) {
  if (thread_position_in_grid.x == 0) {
    y[0] = float(a);
    y[1] = float(b >> 31);
    y[2] = c;
    y[3] = d ? 1.0f : 0.0f;
    y[4] = float(COUNT) + (TWICE ? 0.5f : 0.0f);
  }
}

// Through 16 bits and back, and products rounded to 16 bits.
// cuda: T = half, bfloat
template <typename T>
kernel void narrow(const device float* x, device T* y, device float* back, device T* square) {
  const uint i = thread_position_in_grid.x;
  T v = T(x[i]);
  y[i] = v;
  back[i] = float(v);
  square[i] = v * v;
}

// ---- wrong ----

kernel void reads_outside(const device float* x, device float* y) {
  const uint i = thread_position_in_grid.x;
  y[i] = x[i + 1];  // <- here
}

kernel void writes_outside(const device float* x, device float* y) {
  const int i = thread_position_in_grid.x;
  y[i - 1] = x[i];  // <- here
}

kernel void barrier_for_some(const device float* x, device float* y) {
  const uint i = thread_position_in_grid.x;
  if (i == 63) {
    return;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);  // <- here
  y[i] = x[i];
}

kernel void simd_for_some(const device float* x, device float* y) {
  const uint i = thread_position_in_grid.x;
  float v = x[i];
  if (thread_index_in_simdgroup < 8) {
    v = simd_sum(v);  // <- here
  }
  y[i] = v;
}

kernel void race_of_reader(const device float* x, device float* y) {
  threadgroup float shared[64];
  const uint i = thread_index_in_threadgroup;
  shared[i] = x[i];
  y[i] = shared[i ^ 32];  // <- here
}

kernel void race_of_writer(const device half* x, device half* y) {
  threadgroup half shared[64];
  const uint i = thread_index_in_threadgroup;
  for (int k = 0; k < 2; ++k) {
    shared[i] = half(float(x[i]) + float(k));  // <- here
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = shared[63 - i];
  }
}

kernel void never_filled(const device float* x, device float* y) {
  threadgroup float shared[64];
  const uint i = thread_index_in_threadgroup;
  if (i < 63) {
    shared[i] = x[i];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = shared[63 - i];  // <- here
}

kernel void beyond_the_row(const device float* x, device float* y) {
  threadgroup float shared[2][32];
  const uint i = thread_index_in_threadgroup;
  shared[0][i] = x[i];  // <- here
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = x[i];
}

kernel void misaligned(const device float* x, device float* y) {
  const uint i = thread_position_in_grid.x;
  float4 v = *((const device float4*)(x + 1));
  y[i] = v.x;
}

kernel void all_write_one(const device float* x, device float* y) {
  const uint i = thread_position_in_grid.x;
  y[i / 2] = x[i];  // <- here
}

kernel void forgets_the_last(const device float* x, device float* y) {  // <- here
  const uint i = thread_position_in_grid.x;
  if (i < 60) {
    y[i] = x[i];
  }
}

kernel void too_large(const device float* x, device float* y) {
  threadgroup float a[4096];
  threadgroup float b[4097];  // <- here
  const uint i = thread_position_in_grid.x;
  a[i] = b[i];
  y[i] = x[i];
}
