// Words for the numbers in steps: flags, options, modes. Only for the printed
// plan; what is not in these tables is printed as a number.

type Words = readonly (readonly [bigint, string])[];
type Kind = 'address' | 'size' | 'octal' | 'signed' | 'text' | 'option' | Words;

const words = (table: Readonly<Record<string, number>>): Words =>
  Object.entries(table).map(([word, value]) => [BigInt(value), word] as const);

const kProt = words({ r: 1, w: 2, x: 4 });
const kMap = words({
  shared: 0x1,
  private: 0x2,
  droppable: 0x8,
  anonymous: 0x20,
  growsdown: 0x100,
  noreserve: 0x4000,
  stack: 0x20000,
  'fixed-noreplace': 0x100000,
});
const kOpen = words({
  wronly: 0o1,
  rdwr: 0o2,
  creat: 0o100,
  noctty: 0o400,
  append: 0o2000,
  nonblock: 0o4000,
  direct: 0o40000,
  directory: 0o200000,
  nofollow: 0o400000,
  noatime: 0o1000000,
  cloexec: 0o2000000,
  path: 0o10000000,
});
const kWatch = words({
  access: 0x1,
  modify: 0x2,
  attrib: 0x4,
  'close-write': 0x8,
  'close-nowrite': 0x10,
  open: 0x20,
  'moved-from': 0x40,
  'moved-to': 0x80,
  create: 0x100,
  delete: 0x200,
  'delete-self': 0x400,
  'move-self': 0x800,
  'dont-follow': 0x2000000,
  'excl-unlink': 0x4000000,
  'mask-create': 0x10000000,
  oneshot: 0x80000000,
});
const kClone = words({
  files: 0x400,
  newns: 0x20000,
  newcgroup: 0x2000000,
  newuts: 0x4000000,
  newipc: 0x8000000,
  newuser: 0x10000000,
  newpid: 0x20000000,
  newnet: 0x40000000,
  newtime: 0x80,
});
const kMount = words({
  rdonly: 1,
  nosuid: 2,
  nodev: 4,
  noexec: 8,
  remount: 32,
  noatime: 1024,
  bind: 4096,
  rec: 16384,
  private: 1 << 18,
  slave: 1 << 19,
  shared: 1 << 20,
  relatime: 1 << 21,
});

const kPrctlOptions: ReadonlyMap<bigint, string> = new Map(
  words({
    set_pdeathsig: 1,
    set_dumpable: 4,
    set_name: 15,
    capbset_drop: 24,
    set_securebits: 28,
    set_timerslack: 29,
    set_mm: 35,
    set_child_subreaper: 36,
    set_no_new_privs: 38,
    set_thp_disable: 41,
    cap_ambient: 47,
    timer_create_restore_ids: 77,
  }),
);
const kArchPrctlOptions: ReadonlyMap<bigint, string> = new Map([[0x2003n, 'map_vdso_64']]);
const kFcntlOptions: ReadonlyMap<bigint, string> = new Map(
  words({
    dupfd: 0,
    getfd: 1,
    setfd: 2,
    getfl: 3,
    setfl: 4,
    setown: 8,
    setsig: 10,
    setown_ex: 15,
    dupfd_cloexec: 1030,
    setpipe_sz: 1031,
  }),
);

/** What the arguments of a system call are, by position; the rest are plain numbers. */
const kArguments: Readonly<Record<string, readonly (Kind | undefined)[]>> = {
  arch_prctl: ['option', 'address'],
  chdir: ['text'],
  chroot: ['text'],
  dup3: [undefined, undefined, kOpen],
  fchmodat: ['signed', 'text', 'octal'],
  fchownat: ['signed', 'text'],
  fcntl: [undefined, 'option'],
  fsconfig: [undefined, undefined, 'text', 'text'],
  fsopen: ['text'],
  fchmod: [undefined, 'octal'],
  inotify_add_watch: [undefined, 'text', kWatch],
  inotify_init1: [kOpen],
  madvise: ['address', 'size'],
  mincore: ['address', 'size'],
  mkdirat: ['signed', 'text', 'octal'],
  mknodat: ['signed', 'text', 'octal', 'address'],
  mlock2: ['address', 'size'],
  mmap: ['address', 'size', kProt, kMap, 'signed', 'size'],
  mount: ['text', 'text', 'text', kMount, 'text'],
  move_mount: ['signed', 'text', 'signed', 'text'],
  mprotect: ['address', 'size', kProt],
  munmap: ['address', 'size'],
  open_tree: ['signed', 'text', 'address'],
  openat: ['signed', 'text', kOpen, 'octal'],
  openat2: ['signed', 'text'],
  pipe2: [undefined, kOpen],
  pivot_root: ['text', 'text'],
  prctl: ['option'],
  rseq: ['address'],
  set_robust_list: ['address'],
  set_tid_address: ['address'],
  setdomainname: ['text'],
  sethostname: ['text'],
  symlinkat: ['text', 'signed', 'text'],
  umask: ['octal'],
  umount2: ['text'],
  unlinkat: ['signed', 'text'],
  unshare: [kClone],
  userfaultfd: [words({ 'user-mode-only': 1, nonblock: 0o4000, cloexec: 0o2000000 })],
};

export function isTextArgument(op: string, at: number): boolean {
  if (op === 'prctl') return at === 1; // the only pointers to text are names
  return kArguments[op]?.[at] === 'text';
}

/** One number in words. `op` "clone" with no position: clone flags. */
export function decodeArgument(op: string, value: bigint, at = 0): string {
  if (op === 'clone') return decodeWords(kClone, value);
  const kind = kArguments[op]?.[at];
  if (kind === undefined || kind === 'text') return number(value);
  if (kind === 'address') return `0x${value.toString(16)}`;
  if (kind === 'size') return value < 4096n ? String(value) : `0x${value.toString(16)}`;
  if (kind === 'octal') return `0${value.toString(8)}`;
  if (kind === 'signed') return String(BigInt.asIntN(64, value));
  if (kind === 'option') return option(op, value);
  return decodeWords(kind, value);
}

function option(op: string, value: bigint): string {
  const table = op === 'prctl' ? kPrctlOptions : op === 'arch_prctl' ? kArchPrctlOptions : kFcntlOptions;
  return table.get(value) ?? number(value);
}

function decodeWords(table: Words, value: bigint): string {
  if (value === 0n) return '0';
  let rest = value;
  const found: string[] = [];
  for (const [bits, word] of table) {
    if ((rest & bits) !== bits) continue;
    found.push(word);
    rest &= ~bits;
  }
  if (rest !== 0n) found.push(`0x${rest.toString(16)}`);
  return found.join('|');
}

function number(value: bigint): string {
  const signed = BigInt.asIntN(64, value);
  if (signed < 0n && signed > -4096n) return String(signed);
  return value < 65536n ? String(value) : `0x${value.toString(16)}`;
}
