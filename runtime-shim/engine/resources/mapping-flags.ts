// Numbers of the memory images and of mmap(2), and what they say of a mapping.
import type { vma_entry } from '../../../oci-spec/images/messages.js';

/** vma_entry.status */
export const vmaStatus = {
  REGULAR: 1 << 0,
  STACK: 1 << 1,
  VSYSCALL: 1 << 2,
  VDSO: 1 << 3,
  HEAP: 1 << 5,
  FILE_PRIVATE: 1 << 6,
  FILE_SHARED: 1 << 7,
  ANON_SHARED: 1 << 8,
  ANON_PRIVATE: 1 << 9,
  SYSVIPC: 1 << 10,
  SOCKET: 1 << 11,
  VVAR: 1 << 12,
  AIORING: 1 << 13,
  MEMFD: 1 << 14,
  SHSTK: 1 << 15,
  GUARD: 1 << 16,
  UPROBES: 1 << 17,
} as const;

export const prot = { READ: 1, WRITE: 2, EXEC: 4 } as const;

export const mapFlag = {
  SHARED: 0x1,
  PRIVATE: 0x2,
  DROPPABLE: 0x8,
  ANONYMOUS: 0x20,
  GROWSDOWN: 0x100,
  LOCKED: 0x2000,
  NORESERVE: 0x4000,
  STACK: 0x20000,
  HUGETLB: 0x40000,
  FIXED_NOREPLACE: 0x100000,
} as const;

/** Two-letter VmFlags of smaps -> madvise(2) advice that sets them again. */
export const adviceOfFlag: ReadonlyMap<string, number> = new Map([
  ['rr', 1], // MADV_RANDOM
  ['sr', 2], // MADV_SEQUENTIAL
  ['dc', 10], // MADV_DONTFORK
  ['mg', 12], // MADV_MERGEABLE
  ['hg', 14], // MADV_HUGEPAGE
  ['nh', 15], // MADV_NOHUGEPAGE
  ['dd', 16], // MADV_DONTDUMP
  ['wf', 18], // MADV_WIPEONFORK
]);

export const kMadviseGuardInstall = 102;

/** pagemap_entry.flags */
export const pageFlag = { PARENT: 1, LAZY: 2, PRESENT: 4 } as const;

export const kPageBytes = 4096n;
/** End of user addresses with 47 bits, as x86-64 has them unless a program asks for more. */
export const kTaskEnd = 0x7ffffffff000n;

/** What cannot be restored, in words. */
export function unsupportedMapping(vma: vma_entry): string | undefined {
  const { status } = vma;
  if ((status & vmaStatus.AIORING) !== 0) return 'an asynchronous I/O ring';
  if ((status & vmaStatus.SOCKET) !== 0) return 'a packet socket ring';
  if ((status & vmaStatus.SHSTK) !== 0) return 'a shadow stack';
  if ((vma.flags & mapFlag.HUGETLB) !== 0) return 'huge pages (hugetlb)';
  return undefined;
}

/** Mapped by us; the rest comes from the kernel or is a note about other entries. */
export const isOurs = (vma: vma_entry): boolean =>
  (vma.status & vmaStatus.REGULAR) !== 0 &&
  (vma.status & (vmaStatus.VDSO | vmaStatus.VVAR | vmaStatus.GUARD | vmaStatus.UPROBES)) === 0 &&
  unsupportedMapping(vma) === undefined;
