// Floating point and vector registers of a thread that only computes: SSE, AVX where there is, rounding and exception
// masks.
#include <cpuid.h>
#include <pthread.h>

#include "target.h"

static volatile int stop, started;
static int has_avx;
static struct {
  unsigned char vectors[16][32];
  uint32_t mxcsr;
  uint16_t control_word;
  double x87;
} wanted, found;

static int avx_is_usable(void) {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & bit_OSXSAVE) == 0 || (c & bit_AVX) == 0) return 0;
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & 6) == 6;
}

// From the first load to the last store no C code runs: nothing else may use the registers.
static void* spin_avx(void* unused) {
  __asm__ volatile(
      "ldmxcsr %[mxcsr]\n fldcw %[word]\n fldl %[x87]\n"
      "vmovdqu 0(%[in]),%%ymm0\n vmovdqu 32(%[in]),%%ymm1\n vmovdqu 64(%[in]),%%ymm2\n vmovdqu 96(%[in]),%%ymm3\n"
      "vmovdqu 128(%[in]),%%ymm4\n vmovdqu 160(%[in]),%%ymm5\n vmovdqu 192(%[in]),%%ymm6\n vmovdqu 224(%[in]),%%ymm7\n"
      "vmovdqu 256(%[in]),%%ymm8\n vmovdqu 288(%[in]),%%ymm9\n vmovdqu 320(%[in]),%%ymm10\n vmovdqu "
      "352(%[in]),%%ymm11\n"
      "vmovdqu 384(%[in]),%%ymm12\n vmovdqu 416(%[in]),%%ymm13\n vmovdqu 448(%[in]),%%ymm14\n vmovdqu "
      "480(%[in]),%%ymm15\n"
      "movl $1,%[started]\n"
      "1: pause\n cmpl $0,%[stop]\n je 1b\n"
      "vmovdqu %%ymm0,0(%[out])\n vmovdqu %%ymm1,32(%[out])\n vmovdqu %%ymm2,64(%[out])\n vmovdqu %%ymm3,96(%[out])\n"
      "vmovdqu %%ymm4,128(%[out])\n vmovdqu %%ymm5,160(%[out])\n vmovdqu %%ymm6,192(%[out])\n vmovdqu "
      "%%ymm7,224(%[out])\n"
      "vmovdqu %%ymm8,256(%[out])\n vmovdqu %%ymm9,288(%[out])\n vmovdqu %%ymm10,320(%[out])\n vmovdqu "
      "%%ymm11,352(%[out])\n"
      "vmovdqu %%ymm12,384(%[out])\n vmovdqu %%ymm13,416(%[out])\n vmovdqu %%ymm14,448(%[out])\n vmovdqu "
      "%%ymm15,480(%[out])\n"
      "stmxcsr %[now_mxcsr]\n fnstcw %[now_word]\n fstpl %[now_x87]\n vzeroupper\n"
      : [started] "=m"(started), [now_mxcsr] "=m"(found.mxcsr), [now_word] "=m"(found.control_word),
        [now_x87] "=m"(found.x87)
      : [in] "r"(wanted.vectors), [out] "r"(found.vectors), [stop] "m"(stop), [mxcsr] "m"(wanted.mxcsr),
        [word] "m"(wanted.control_word), [x87] "m"(wanted.x87)
      : "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
        "xmm12", "xmm13", "xmm14", "xmm15");
  return unused;
}

static void* spin_sse(void* unused) {
  __asm__ volatile(
      "ldmxcsr %[mxcsr]\n fldcw %[word]\n fldl %[x87]\n"
      "movdqu 0(%[in]),%%xmm0\n movdqu 32(%[in]),%%xmm1\n movdqu 224(%[in]),%%xmm7\n movdqu 480(%[in]),%%xmm15\n"
      "movl $1,%[started]\n"
      "1: pause\n cmpl $0,%[stop]\n je 1b\n"
      "movdqu %%xmm0,0(%[out])\n movdqu %%xmm1,32(%[out])\n movdqu %%xmm7,224(%[out])\n movdqu %%xmm15,480(%[out])\n"
      "stmxcsr %[now_mxcsr]\n fnstcw %[now_word]\n fstpl %[now_x87]\n"
      : [started] "=m"(started), [now_mxcsr] "=m"(found.mxcsr), [now_word] "=m"(found.control_word),
        [now_x87] "=m"(found.x87)
      : [in] "r"(wanted.vectors), [out] "r"(found.vectors), [stop] "m"(stop), [mxcsr] "m"(wanted.mxcsr),
        [word] "m"(wanted.control_word), [x87] "m"(wanted.x87)
      : "memory", "xmm0", "xmm1", "xmm7", "xmm15");
  return unused;
}

int main(void) {
  has_avx = avx_is_usable();
  for (int i = 0; i < 16; i++) {
    for (int j = 0; j < 32; j++) wanted.vectors[i][j] = (unsigned char)(i * 37 + j * 11 + 1);
  }
  wanted.mxcsr = 0x1f80 | 0x6000;          // round towards zero
  wanted.control_word = 0x037f & ~0x0300;  // single precision
  wanted.x87 = 1.5;
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, has_avx ? spin_avx : spin_sse, NULL) == 0, "no thread");
  while (!started) pause_ms(1);

  wait_for_check();

  stop = 1;
  pthread_join(thread, NULL);
  const int sse_registers[] = {0, 1, 7, 15};
  for (int i = 0; i < (has_avx ? 16 : 4); i++) {
    int number = has_avx ? i : sse_registers[i];
    CHECK(memcmp(wanted.vectors[number], found.vectors[number], has_avx ? 32 : 16) == 0, "vector register %d changed",
          number);
  }
  CHECK(found.mxcsr == wanted.mxcsr, "mxcsr is %#x, was %#x", found.mxcsr, wanted.mxcsr);
  CHECK(found.control_word == wanted.control_word, "the control word is %#x, was %#x", found.control_word,
        wanted.control_word);
  CHECK(found.x87 == wanted.x87, "st(0) is %g, was %g", found.x87, wanted.x87);
  return ok();
}
