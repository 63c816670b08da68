// The content of a tmpfs: a gzipped tar per super block, and the steps that
// make it again below a fresh mount. Sockets are left out: binding makes them.
import { gunzipSync, gzipSync } from 'node:zlib';
import type { Statx, TmpfsContent, TmpfsEntry } from '../../../nativecore/schema/messages.js';
import type { CompileContext } from '../compile-context.js';
import type { EncodeContext } from '../encode-context.js';
import { Phase, type SlotRef } from '../plan/builder.js';
import {
  corrupt,
  kAtSymlinkNofollow,
  kBlockDeviceType,
  kCharDeviceType,
  kDirectoryType,
  kFifoType,
  kFileTypeMask,
  kOCloexec,
  kOCreate,
  kOExclusive,
  kONofollow,
  kOpenHowBytes,
  kOWriteOnly,
  kRegularType,
  kResolveBeneath,
  kResolveNoSymlinks,
  kResolveNoXdev,
  kSymlinkType,
  openHow,
  u64s,
} from './file-common.js';
import { readTar, TarError, writeTar, type NewTarEntry, type TarEntry, type TarType } from './tar.js';
import { insideGid, insideUid } from './user-namespace.js';

const kMaxArchiveBytes = 512 * 1024 * 1024;
const kPageBytes = 4096;
/** tv_nsec of utimensat(2): leave this time alone. */
const kUtimeOmit = 0x3ffffffen;
const kEopnotsupp = 95;
/** Below the most that write(2) takes at a time (2 GiB less a page). */
const kMaxWriteBytes = 1 << 30;

export function tmpfsImageName(device: number): string {
  return `tmpfs-dev-${device}.tar.gz.img`;
}

// ---- raw capture to image

export function encodeTmpfs(ctx: EncodeContext, content: TmpfsContent): void {
  const entries = content.entries.flatMap((entry) => tarEntryOf(entry, ctx));
  // Level 1: the target may be stopped while this runs, and most of a tmpfs of a container is small.
  ctx.images.addRaw(tmpfsImageName(Number(content.device)), gzipSync(writeTar(entries), { level: 1 }));
}

const typeOfMode = new Map<number, TarType>([
  [kRegularType, 'file'],
  [kSymlinkType, 'symlink'],
  [kCharDeviceType, 'character'],
  [kBlockDeviceType, 'block'],
  [kDirectoryType, 'directory'],
  [kFifoType, 'fifo'],
]);

function tarEntryOf(entry: TmpfsEntry, ctx: EncodeContext): NewTarEntry[] {
  const stat: Statx | undefined = entry.stat;
  if (stat === undefined) return [];
  const linked = entry.hardLinkTo.length > 0;
  const type = linked ? 'link' : typeOfMode.get(stat.mode & kFileTypeMask);
  if (type === undefined) return [];
  const path = Buffer.from(entry.path);
  const device = type === 'character' || type === 'block';
  return [
    {
      name: path.equals(Buffer.from('.')) ? Buffer.alloc(0) : path,
      type,
      mode: stat.mode & 0o7777,
      uid: insideUid(ctx, stat.uid),
      gid: insideGid(ctx, stat.gid),
      mtimeNs: stat.mtimeNs,
      content: type === 'file' ? entry.content : new Uint8Array(0),
      linkName: linked ? Buffer.concat([Buffer.from('./'), entry.hardLinkTo]) : Buffer.from(entry.linkTarget),
      deviceMajor: device ? Number(stat.rdev >> 20n) : 0,
      deviceMinor: device ? Number(stat.rdev & 0xfffffn) : 0,
      attributes: new Map(
        entry.attributes.map((attribute) => [
          Buffer.from(attribute.name).toString('utf8'),
          Buffer.from(attribute.value),
        ]),
      ),
    },
  ];
}

// ---- image to plan

/** The entries of a tmpfs image, checked; parents before children, nothing twice, no way out. */
export function readTmpfsImage(ctx: CompileContext, device: number): readonly TarEntry[] {
  let known = read.get(ctx);
  if (known === undefined) read.set(ctx, (known = new Map()));
  let entries = known.get(device);
  if (entries === undefined) known.set(device, (entries = readAndCheck(ctx, device)));
  return entries;
}
const read = new WeakMap<CompileContext, Map<number, readonly TarEntry[]>>();

function readAndCheck(ctx: CompileContext, device: number): readonly TarEntry[] {
  const image = tmpfsImageName(device);
  const bytes = ctx.images.set.raw(image);
  if (bytes === undefined) return [];
  let entries: TarEntry[];
  try {
    entries = readTar(gunzipSync(bytes, { maxOutputLength: kMaxArchiveBytes }));
  } catch (error) {
    const reason = error instanceof TarError ? error.message : `cannot be unpacked (${(error as Error).message})`;
    throw corrupt(image, reason);
  }
  const known = new Map<string, TarType>([['', 'directory']]);
  for (const entry of entries) {
    const name = entry.name.toString('latin1');
    const shown = entry.name.toString('utf8').slice(0, 80);
    const parts = name === '' ? [] : name.split('/');
    if (parts.some((part) => part === '' || part === '.' || part === '..') || name.includes('\0') || name.length > 4000)
      throw corrupt(image, `holds an unusable name "${shown}"`);
    const parent = parts.slice(0, -1).join('/');
    // A symbolic link in the middle of a path would lead the steps elsewhere.
    if (known.get(parent) !== 'directory')
      throw corrupt(image, `holds "${shown}" below something that is no directory in it`);
    if (name !== '' && known.has(name)) throw corrupt(image, `holds "${shown}" twice`);
    if (name === '' && entry.type !== 'directory') throw corrupt(image, 'has a root that is no directory');
    if (entry.type === 'link') {
      const target = linkTargetOf(entry).toString('latin1');
      if ((known.get(target) ?? 'directory') === 'directory')
        throw corrupt(image, `links "${shown}" to something that is not in it`);
    }
    if (entry.type === 'symlink' && (entry.linkName.length === 0 || entry.linkName.includes(0)))
      throw corrupt(image, `holds an empty link "${shown}"`);
    known.set(name, entry.type);
  }
  return entries;
}

/** Is this path of a tmpfs image a directory? undefined: it is not in the image. */
export function isDirectoryIn(entries: readonly TarEntry[], path: string): boolean | undefined {
  const wanted = path.replace(/^\/+/, '');
  if (wanted === '') return true;
  const entry = entries.find((candidate) => candidate.name.toString('utf8') === wanted);
  return entry === undefined ? undefined : entry.type === 'directory';
}

function linkTargetOf(entry: TarEntry): Buffer {
  let name = entry.linkName;
  while (name[0] === 0x2e && name[1] === 0x2f) name = name.subarray(2);
  return name;
}

/** Fills a fresh, still writable tmpfs; `mount` is a descriptor of its root. Precondition: umask 0. */
export function compileTmpfsContent(
  ctx: CompileContext,
  entries: readonly TarEntry[],
  mount: SlotRef,
  from: string,
): void {
  const task = ctx.root.builder;
  const step = (op: string, args: Parameters<typeof task.step>[2], more: object = {}): void =>
    task.step(Phase.NAMESPACES, op, args, { from, ...more });
  for (const entry of entries) {
    const path = entry.name.length === 0 ? ctx.plan.text('.') : ctx.plan.text(entry.name);
    switch (entry.type) {
      case 'directory':
        if (entry.name.length > 0) step('mkdirat', [mount, path, entry.mode & 0o777]);
        break;
      case 'symlink':
        step('symlinkat', [ctx.plan.text(entry.linkName), mount, path]);
        break;
      case 'link':
        step('linkat', [mount, ctx.plan.text(linkTargetOf(entry)), mount, path, 0]);
        break;
      case 'character':
        step('mknodat', [mount, path, kCharDeviceType | entry.mode, deviceNumber(entry)]);
        break;
      case 'block':
        step('mknodat', [mount, path, kBlockDeviceType | entry.mode, deviceNumber(entry)]);
        break;
      case 'fifo':
        step('mknodat', [mount, path, kFifoType | entry.mode, 0]);
        break;
      case 'file':
        compileFile(ctx, entry, mount, from);
        break;
    }
    // A hard link is a name of an inode that has all this already.
    if (entry.type === 'link') continue;
    if (entry.uid !== 0 || entry.gid !== 0) step('fchownat', [mount, path, entry.uid, entry.gid, kAtSymlinkNofollow]);
    // After chown, which clears set-id bits; mkdir and mknod do not take all of them either.
    if (
      entry.type !== 'symlink' &&
      (entry.name.length === 0 || entry.uid !== 0 || entry.gid !== 0 || (entry.mode & 0o7000) !== 0)
    )
      step('fchmodat', [mount, path, entry.mode]);
    compileAttributes(ctx, entry, mount, from);
  }
  // Times last and children before parents: every new name touches its directory.
  for (const entry of [...entries].reverse()) {
    if (entry.type === 'link' || entry.mtimeNs === 0n) continue;
    const path = entry.name.length === 0 ? ctx.plan.text('.') : ctx.plan.text(entry.name);
    const times = ctx.plan.blob(u64s(0n, kUtimeOmit, entry.mtimeNs / 1_000_000_000n, entry.mtimeNs % 1_000_000_000n));
    step('utimensat', [mount, path, times, kAtSymlinkNofollow]);
  }
}

/** dev_t as mknod(2) takes it: Linux, MKDEV in user space encoding. */
function deviceNumber(entry: TarEntry): bigint {
  const major = BigInt(entry.deviceMajor);
  const minor = BigInt(entry.deviceMinor);
  return ((major & 0xfffn) << 8n) | (minor & 0xffn) | ((minor & ~0xffn) << 12n) | ((major & ~0xfffn) << 32n);
}

function compileFile(ctx: CompileContext, entry: TarEntry, mount: SlotRef, from: string): void {
  const task = ctx.root.builder;
  const file = ctx.plan.slot(entry.name.toString('utf8'));
  const how = openHow(
    kOCreate | kOExclusive | kOWriteOnly | kONofollow | kOCloexec,
    entry.mode & 0o777,
    kResolveBeneath | kResolveNoSymlinks | kResolveNoXdev,
  );
  task.step(Phase.NAMESPACES, 'openat2', [mount, ctx.plan.text(entry.name), ctx.plan.blob(how), kOpenHowBytes], {
    out: file,
    from,
  });
  let written = 0;
  for (const { offset, bytes } of entry.runs.flatMap((run) => [...dataStretches(run)])) {
    for (let at = 0; at < bytes.length; at += kMaxWriteBytes) {
      const chunk = bytes.subarray(at, at + kMaxWriteBytes);
      task.step(Phase.NAMESPACES, 'pwrite64', [file, ctx.plan.blob(chunk), chunk.length, offset + at], {
        expected: chunk.length,
        from,
      });
      written = offset + at + chunk.length;
    }
  }
  if (written < entry.sizeBytes) task.step(Phase.NAMESPACES, 'ftruncate', [file, entry.sizeBytes], { from });
  task.step(Phase.NAMESPACES, 'close', [file], { from });
}

/** What of a run is not whole pages of zeros: those cost no memory as holes, and were holes most likely. */
function* dataStretches(run: TarEntry['runs'][number]): Generator<{ offset: number; bytes: Uint8Array }> {
  const { bytes, offset } = run;
  let start = -1;
  for (let at = 0; at < bytes.length;) {
    const end = Math.min(bytes.length, at + kPageBytes - ((offset + at) % kPageBytes));
    const isHole = end - at === kPageBytes && bytes.subarray(at, end).every((byte) => byte === 0);
    if (!isHole && start < 0) start = at;
    if (isHole && start >= 0) {
      yield { offset: offset + start, bytes: bytes.subarray(start, at) };
      start = -1;
    }
    at = end;
  }
  if (start >= 0) yield { offset: offset + start, bytes: bytes.subarray(start) };
}

function compileAttributes(ctx: CompileContext, entry: TarEntry, mount: SlotRef, from: string): void {
  if (entry.attributes.size === 0 || entry.type === 'link') return;
  const task = ctx.root.builder;
  // There is no lsetxattrat: the path is relative to the working directory.
  task.step(Phase.NAMESPACES, 'fchdir', [mount], { from });
  const path = ctx.plan.text(
    entry.name.length === 0 ? Buffer.from('.') : Buffer.concat([Buffer.from('./'), entry.name]),
  );
  for (const [name, value] of entry.attributes) {
    task.step(Phase.NAMESPACES, 'lsetxattr', [path, ctx.plan.text(name), ctx.plan.blob(value), value.length, 0], {
      from,
      tolerate: [kEopnotsupp],
      note: name,
    });
  }
}
