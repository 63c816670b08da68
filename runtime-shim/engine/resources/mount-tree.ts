// The mount tree, put together by the root task in its new mount namespace:
//
//   host tree, private
//     +-- yard: the root file system, bound there
//           +-- every mount of the images, parents first, each made detached
//               and then moved to its place
//   pivot_root into the yard; the host tree is let go
//
// Images may be hostile. Every mount point is looked up below the new root
// (RESOLVE_IN_ROOT), every bind source inside of one mount (RESOLVE_BENEATH,
// no crossing), and host paths come from the restoring side only.
import { fstype, type mnt_entry } from '../../../oci-spec/images/messages.js';
import type { CompileContext } from '../compile-context.js';
import { Phase, type Operand, type SlotRef, type StepOptions } from '../plan/builder.js';
import {
  corrupt,
  kAtEmptyPath,
  kAtFdCwd,
  kOCloexec,
  kODirectory,
  kONofollow,
  kOpenHowBytes,
  kOPath,
  kRegularType,
  kResolveBeneath,
  kResolveInRoot,
  kResolveNoMagiclinks,
  kResolveNoSymlinks,
  kResolveNoXdev,
  openHow,
  u64s,
} from './file-common.js';
import { freshTypes, isBelow, mountFlag } from './mount-entry.js';
import { createsNamespace, imageNamespaceId } from './namespaces.js';
import { makeTerminals } from './tty.js';
import { compileTmpfsContent, isDirectoryIn, readTmpfsImage } from './tmpfs.js';

const kMsRec = 1 << 14;
const kFsopenCloexec = 1;
const kFsmountCloexec = 1;
const kSetFlag = 0;
const kSetString = 1;
const kCmdCreate = 6;
const kCmdReconfigure = 7;
const kOpenTreeClone = 1;
const kMoveFromEmptyPath = 4;
const kMoveToEmptyPath = 0x40;
const kMntDetach = 2;
const kEexist = 17;
const kErofs = 30;
const kMountAttrBytes = 32;
const kMaxMounts = 100_000;

// linux/mount.h
const kAttrReadOnly = 1n;
const kAttrNoSuid = 2n;
const kAttrNoDev = 4n;
const kAttrNoExec = 8n;
const kAttrNoAtime = 0x10n;
const kAttrStrictAtime = 0x20n;
const kAttrAtimeMask = 0x70n;
const kAttrNoDirAtime = 0x80n;
const kAttrNoSymFollow = 0x200000n;

const typeNames = new Map<number, string>([
  [fstype.PROC, 'proc'],
  [fstype.SYSFS, 'sysfs'],
  [fstype.TMPFS, 'tmpfs'],
  [fstype.DEVPTS, 'devpts'],
  [fstype.MQUEUE, 'mqueue'],
  [fstype.CGROUP, 'cgroup'],
  [fstype.CGROUP2, 'cgroup2'],
]);

/** Shown among the options of a mount, but not taken by mount: what the kernel or a security module adds. */
const shownOnly = /^(seclabel|inode32|inode64)$/;

/** What the new tree takes from the host's: detached copies, and where to put the whole. */
interface HostSources {
  readonly compiler: MountTreeCompiler;
  readonly rootfs: string;
}
const sources = new WeakMap<CompileContext, HostSources>();

/**
 * Takes hold of everything that is named by a host path. Before the root task
 * becomes root of its own user namespace: as that it could not search the
 * directories of the host's root any more.
 */
export function compileHostSources(ctx: CompileContext): void {
  if (!createsNamespace(ctx, 'mnt')) return;
  const id = imageNamespaceId(ctx, 'mnt');
  if (id === undefined) return;
  const image = `mountpoints-${id}.img`;
  if (ctx.options.rootfs === undefined) {
    ctx.object('BUNDLE_INVALID', 'the images have a mount namespace, and no root file system is given for it', {
      image,
    });
    return;
  }
  const entries = ctx.images.set.messages('mountpoints', id);
  if (entries.length === 0) throw corrupt(image, 'is missing or empty');
  const compiler = new MountTreeCompiler(ctx, image, entries);
  compiler.takeFromHost(ctx.options.rootfs, ctx.options.yardDirectory ?? ctx.options.rootfs);
  sources.set(ctx, { compiler, rootfs: ctx.options.rootfs });
}

/** Puts the tree together and moves into it. */
export function compileMountTree(ctx: CompileContext): void {
  const taken = sources.get(ctx);
  taken?.compiler.compile(taken.rootfs);
}

interface PlacedMount {
  readonly entry: mnt_entry;
  /** Descriptor of the mount's root, kept while others are bound from it. */
  slot: SlotRef;
}

class MountTreeCompiler {
  readonly #placed: PlacedMount[] = [];
  readonly #root: mnt_entry;
  readonly #ordered: readonly mnt_entry[];
  #rootSlot: SlotRef | undefined;
  #yardSlot: SlotRef | undefined;
  /** Copies of what the restoring side provides. */
  readonly #external = new Map<mnt_entry, SlotRef>();

  constructor(
    readonly ctx: CompileContext,
    readonly image: string,
    entries: readonly mnt_entry[],
  ) {
    const { root, ordered } = orderMounts(entries, image);
    this.#root = root;
    this.#ordered = ordered;
  }

  takeFromHost(rootfs: string, yard: string): void {
    const from = this.#from(this.#root);
    // Nothing that happens here may reach the host; what the host does later reaches only slaves, which some binds are.
    this.#step('mount', [0, this.ctx.plan.text('/'), 0, kMsRec | mountFlag.slave, 0], {
      from,
      note: 'host tree: no way back',
    });
    this.#rootSlot = this.#clone(kAtFdCwd, rootfs, from);
    this.#yardSlot = this.ctx.plan.slot('yard');
    this.#step('openat', [kAtFdCwd, this.ctx.plan.text(yard), kOPath | kODirectory | kOCloexec, 0], {
      out: this.#yardSlot,
      from,
      note: yard,
    });
    for (const entry of this.#ordered) {
      if (entry.ext_key === undefined) continue;
      const { externalMounts } = this.ctx.options;
      const hostPath = externalMounts.get(entry.ext_key) ?? externalMounts.get(entry.mountpoint);
      if (hostPath !== undefined) this.#external.set(entry, this.#clone(kAtFdCwd, hostPath, this.#from(entry)));
    }
  }

  compile(rootfs: string): void {
    const from = this.#from(this.#root);
    if (this.#rootSlot === undefined || this.#yardSlot === undefined) return;
    this.#setAttributes(this.#rootSlot, this.#root, from, { readOnly: false });
    const empty = this.ctx.plan.text('');
    this.#step('move_mount', [this.#rootSlot, empty, this.#yardSlot, empty, kMoveFromEmptyPath | kMoveToEmptyPath], {
      from,
      note: rootfs,
    });
    this.#step('close', [this.#yardSlot], { from });
    this.#placed.push({ entry: this.#root, slot: this.#rootSlot });

    for (const entry of this.#ordered) this.#place(entry);
    this.#share();
    // Last: mount points may have been made in it.
    if ((this.#root.flags & mountFlag.readOnly) !== 0)
      this.#setAttributes(this.#rootSlot, this.#root, from, { readOnly: true });
    this.#pivot(from);
    for (const { slot } of this.#placed) this.#step('close', [slot], { from });
  }

  #from(entry: mnt_entry): string {
    return `${this.image.replace('.img', '')}[${entry.mnt_id}]`;
  }

  #step(op: string, args: readonly Operand[], options: StepOptions): void {
    this.ctx.root.builder.step(Phase.NAMESPACES, op, args, options);
  }

  /** A detached copy of one mount: of a host path, or of the mount that a descriptor is in. */
  #clone(directory: Operand, path: string, from: string): SlotRef {
    const slot = this.ctx.plan.slot(path === '' ? 'bind' : path);
    const flags = kOpenTreeClone | kOCloexec | (path === '' ? kAtEmptyPath : 0);
    this.#step('open_tree', [directory, this.ctx.plan.text(path), flags], { out: slot, from, note: path });
    return slot;
  }

  #place(entry: mnt_entry): void {
    const from = this.#from(entry);
    const made = this.#make(entry, from);
    if (made === undefined) return;
    this.#makeMountPoint(entry, made.directory, from);
    const target = this.#open(
      this.#rootSlot as SlotRef,
      entry.mountpoint,
      kOPath,
      kResolveInRoot | kResolveNoMagiclinks,
      from,
    );
    const empty = this.ctx.plan.text('');
    this.#step('move_mount', [made.slot, empty, target, empty, kMoveFromEmptyPath | kMoveToEmptyPath], {
      from,
      note: entry.mountpoint,
    });
    this.#step('close', [target], { from });
    this.#placed.push({ entry, slot: made.slot });
  }

  /** The mount, detached, with its attributes; `directory` says what its mount point has to be, if that is known. */
  #make(entry: mnt_entry, from: string): { slot: SlotRef; directory: boolean | undefined } | undefined {
    if (entry.ext_key !== undefined) {
      const slot = this.#external.get(entry);
      if (slot === undefined) {
        this.ctx.object(
          'BUNDLE_INVALID',
          `mount "${entry.mountpoint}" is provided from outside as "${entry.ext_key}", and nothing is given for it`,
          { mount: entry.mountpoint, image: this.image },
          'add the bind mount to config.json of the bundle',
        );
        return undefined;
      }
      this.#setAttributes(slot, entry, from, { readOnly: true });
      return { slot, directory: undefined };
    }
    const source = this.#placed.find(
      (placed) => placed.entry.root_dev === entry.root_dev && isBelow(entry.root, placed.entry.root),
    );
    if (source !== undefined) return this.#bind(entry, source, from);
    if (freshTypes.has(entry.fstype) && entry.root === '/') return { slot: this.#fresh(entry, from), directory: true };
    this.ctx.object(
      'IMAGE_FEATURE_UNSUPPORTED',
      `mount "${entry.mountpoint}" (file system type ${entry.fstype}, root "${entry.root}") is not carried`,
      {
        mount: entry.mountpoint,
        image: this.image,
      },
    );
    return undefined;
  }

  #bind(entry: mnt_entry, source: PlacedMount, from: string): { slot: SlotRef; directory: boolean | undefined } {
    const inside = entry.root.slice(source.entry.root === '/' ? 1 : source.entry.root.length + 1);
    // Inside of the one mount: a symbolic link or another mount on the way would lead elsewhere.
    const resolve = kResolveBeneath | kResolveNoSymlinks | kResolveNoMagiclinks | kResolveNoXdev;
    const path = this.#open(source.slot, inside === '' ? '.' : inside, kOPath | kONofollow, resolve, from);
    const slot = this.#clone(path, '', from);
    this.#step('close', [path], { from });
    this.#setAttributes(slot, entry, from, { readOnly: true });
    const content = source.entry.fstype === fstype.TMPFS ? readTmpfsImage(this.ctx, source.entry.root_dev) : undefined;
    return { slot, directory: content === undefined ? undefined : isDirectoryIn(content, entry.root) };
  }

  #fresh(entry: mnt_entry, from: string): SlotRef {
    const { plan } = this.ctx;
    const type = typeNames.get(entry.fstype) ?? '';
    const readOnlySuper = ((entry.sb_flags ?? 0) & mountFlag.readOnly) !== 0;
    const content = entry.fstype === fstype.TMPFS ? readTmpfsImage(this.ctx, entry.root_dev) : [];
    const context = plan.slot(`${type} context`);
    this.#step('fsopen', [plan.text(type), kFsopenCloexec], { out: context, from });
    const set = (key: string, value?: string): void =>
      value === undefined
        ? this.#step('fsconfig', [context, kSetFlag, plan.text(key), 0, 0], { from, note: key })
        : this.#step('fsconfig', [context, kSetString, plan.text(key), plan.text(value), 0], {
            from,
            note: `${key}=${value}`,
          });
    if (entry.source !== '' && entry.source !== 'none') set('source', entry.source);
    for (const [key, value] of superOptions(entry)) set(key, value);
    if (readOnlySuper && content.length === 0) set('ro');
    this.#step('fsconfig', [context, kCmdCreate, 0, 0, 0], { from });
    const slot = plan.slot(`${type} on ${entry.mountpoint}`);
    this.#step('fsmount', [context, kFsmountCloexec, 0], { out: slot, from });
    if (content.length > 0) {
      compileTmpfsContent(this.ctx, content, slot, from);
      // Only now: nothing could have been written otherwise.
      if (readOnlySuper) {
        set('ro');
        this.#step('fsconfig', [context, kCmdReconfigure, 0, 0, 0], { from, note: 'read-only' });
      }
    }
    this.#step('close', [context], { from });
    if (entry.fstype === fstype.DEVPTS)
      makeTerminals(this.ctx, entry.root_dev, slot, (op, args, options) => this.#step(op, args, options));
    this.#setAttributes(slot, entry, from, { readOnly: true });
    return slot;
  }

  #open(directory: SlotRef, path: string, flags: number, resolve: number, from: string): SlotRef {
    const { plan } = this.ctx;
    const slot = plan.slot(path);
    const how = plan.blob(openHow(flags | kOCloexec, 0, resolve));
    this.#step('openat2', [directory, plan.text(path), how, kOpenHowBytes], { out: slot, from, note: path });
    return slot;
  }

  /** struct mount_attr: set, clear, propagation, user namespace. */
  #setAttributes(mount: SlotRef, entry: mnt_entry, from: string, { readOnly }: { readonly readOnly: boolean }): void {
    const wanted = attributesOf(entry.flags) & (readOnly ? ~0n : ~kAttrReadOnly);
    const settable = kAttrNoSuid | kAttrNoDev | kAttrNoExec | kAttrNoDirAtime | kAttrNoSymFollow | kAttrReadOnly;
    const slave = (entry.flags & mountFlag.slave) !== 0;
    const attributes = u64s(wanted, (settable & ~wanted) | kAttrAtimeMask, BigInt(slave ? 0 : mountFlag.private), 0n);
    this.#step(
      'mount_setattr',
      [mount, this.ctx.plan.text(''), kAtEmptyPath, this.ctx.plan.blob(attributes), kMountAttrBytes],
      {
        from,
        note: `flags 0x${entry.flags.toString(16)}`,
      },
    );
  }

  /**
   * In a root file system that the container was not made in, mount points
   * are missing. Which kind is needed is known of fresh file systems and of
   * what is bound out of a tmpfs; what is provided from outside is known to
   * the restoring side, which has made those.
   */
  #makeMountPoint(entry: mnt_entry, directory: boolean | undefined, from: string): void {
    const onRoot =
      this.#placed.find(({ entry: placed }) => placed.mnt_id === entry.parent_mnt_id)?.entry === this.#root;
    const kind = entry.ext_key === undefined ? directory : this.#externalKind(entry.ext_key);
    if (!onRoot || kind === undefined) return;
    const parts = entry.mountpoint.split('/').filter((part) => part !== '');
    let above = '/';
    parts.forEach((part, index) => {
      const parent = this.#open(
        this.#rootSlot as SlotRef,
        above,
        kOPath | kODirectory,
        kResolveInRoot | kResolveNoMagiclinks,
        from,
      );
      const there = { from, tolerate: [kEexist, kErofs], note: `mount point ${entry.mountpoint}` };
      if (index === parts.length - 1 && !kind)
        this.#step('mknodat', [parent, this.ctx.plan.text(part), kRegularType | 0o644, 0], there);
      else this.#step('mkdirat', [parent, this.ctx.plan.text(part), 0o755], there);
      this.#step('close', [parent], { from });
      above = `${above === '/' ? '' : above}/${part}`;
    });
  }

  #externalKind(key: string): boolean | undefined {
    const files = this.ctx.options.externalFileMounts;
    return files === undefined ? undefined : !files.has(key);
  }

  /** After every move: the kernel refuses to move mounts out of and into shared ones. */
  #share(): void {
    const groups = new Map<number, number>();
    for (const { entry, slot } of this.#placed) {
      if ((entry.flags & (mountFlag.shared | mountFlag.unbindable)) === 0) continue;
      const from = this.#from(entry);
      const propagation = (entry.flags & mountFlag.shared) !== 0 ? mountFlag.shared : mountFlag.unbindable;
      const attributes = this.ctx.plan.blob(u64s(0n, 0n, BigInt(propagation), 0n));
      this.#step('mount_setattr', [slot, this.ctx.plan.text(''), kAtEmptyPath, attributes, kMountAttrBytes], {
        from,
        note: 'propagation',
      });
      if (entry.shared_id !== undefined) groups.set(entry.shared_id, (groups.get(entry.shared_id) ?? 0) + 1);
    }
    for (const [group, members] of groups) {
      if (members < 2) continue;
      this.ctx.degrade(
        'MOUNT_PEERS_SEPARATE',
        `${members} mounts shared peer group ${group}; restored, each is a group of its own`,
        { image: this.image },
      );
    }
  }

  #pivot(from: string): void {
    const dot = this.ctx.plan.text('.');
    this.#step('fchdir', [this.#rootSlot as SlotRef], { from });
    // The old root ends up on top of the new one at "/", and is taken off again: no directory is needed for it.
    this.#step('pivot_root', [dot, dot], { from });
    this.#step('umount2', [dot, kMntDetach], { from, note: 'the host tree' });
    this.#step('chdir', [this.ctx.plan.text('/')], { from });
  }
}

/** Parents first, otherwise as mountinfo had them, which is the order of mounting; the format has that reversed. */
function orderMounts(entries: readonly mnt_entry[], image: string): { root: mnt_entry; ordered: mnt_entry[] } {
  if (entries.length > kMaxMounts) throw corrupt(image, `holds ${entries.length} mounts`);
  const byId = new Map<number, mnt_entry>();
  for (const entry of entries) {
    if (byId.has(entry.mnt_id)) throw corrupt(image, `holds mount ${entry.mnt_id} twice`);
    if (
      !entry.mountpoint.startsWith('/') ||
      !entry.root.startsWith('/') ||
      entry.mountpoint.includes('\0') ||
      entry.root.includes('\0')
    )
      throw corrupt(image, `holds mount ${entry.mnt_id} with an unusable path`);
    byId.set(entry.mnt_id, entry);
  }
  const roots = entries.filter((entry) => entry.mountpoint === '/');
  const [root] = roots;
  if (root === undefined || roots.length > 1) throw corrupt(image, `holds ${roots.length} mounts on "/", wanted one`);
  const placed = new Set([root.mnt_id]);
  const ordered: mnt_entry[] = [];
  const waiting = new Map<number, mnt_entry[]>();
  const place = (first: mnt_entry): void => {
    const queue = [first];
    for (let entry = queue.shift(); entry !== undefined; entry = queue.shift()) {
      placed.add(entry.mnt_id);
      ordered.push(entry);
      queue.push(...(waiting.get(entry.mnt_id) ?? []));
      waiting.delete(entry.mnt_id);
    }
  };
  for (const entry of [...entries].reverse()) {
    if (entry === root) continue;
    if (placed.has(entry.parent_mnt_id)) place(entry);
    else waiting.set(entry.parent_mnt_id, [...(waiting.get(entry.parent_mnt_id) ?? []), entry]);
  }
  const lost = [...waiting.values()].flat()[0];
  if (lost !== undefined)
    throw corrupt(
      image,
      `holds mount ${lost.mnt_id} ("${lost.mountpoint}"), whose parent ${lost.parent_mnt_id} is not there`,
    );
  return { root, ordered };
}

function attributesOf(flags: number): bigint {
  let attributes = 0n;
  if ((flags & mountFlag.readOnly) !== 0) attributes |= kAttrReadOnly;
  if ((flags & mountFlag.noSuid) !== 0) attributes |= kAttrNoSuid;
  if ((flags & mountFlag.noDev) !== 0) attributes |= kAttrNoDev;
  if ((flags & mountFlag.noExec) !== 0) attributes |= kAttrNoExec;
  if ((flags & mountFlag.noDirAtime) !== 0) attributes |= kAttrNoDirAtime;
  if ((flags & mountFlag.noSymFollow) !== 0) attributes |= kAttrNoSymFollow;
  if ((flags & mountFlag.noAtime) !== 0) attributes |= kAttrNoAtime;
  else if ((flags & mountFlag.relAtime) === 0) attributes |= kAttrStrictAtime;
  return attributes;
}

/** "size=65536k,mode=755" as fsconfig takes it. */
function superOptions(entry: mnt_entry): [string, string | undefined][] {
  // The options of a cgroup hierarchy are those of the host's one super block; only which hierarchy it is matters.
  if (entry.fstype === fstype.CGROUP2) return [];
  const options = entry.options.split(',').filter((option) => option !== '' && !shownOnly.test(option));
  const pairs = options.map((option): [string, string | undefined] => {
    const equals = option.indexOf('=');
    return equals < 0 ? [option, undefined] : [option.slice(0, equals), option.slice(equals + 1)];
  });
  if (entry.fstype !== fstype.CGROUP) return pairs;
  return pairs.filter(([key, value]) =>
    value === undefined ? !/^(xattr|noprefix|clone_children|cpuset_v2_mode|favordynmods)$/.test(key) : key === 'name',
  );
}
